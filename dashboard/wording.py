"""Words of the books in the language of the page."""

from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _
from django.utils.translation import pgettext_lazy

WORDS: dict[str, dict[str, Promise]] = {
    "status": {
        "ok": _("Completed"),
        "cut": _("Cut at max_tokens"),
        "client_closed": _("Client left early"),
        "backend_error": _("Backend broke off"),
        "timeout": _("Cut off at a deadline"),
        "expired": _("Process died, estimated"),
    },
    "source": {
        "upstream": _("reported by the backend"),
        "counted": _("counted by us"),
        "estimated": _("estimated"),
    },
    "kind": {
        "text_in": _("Text tokens"),
        "image_in": _("Image tokens"),
        "cached_in": _("Cached tokens"),
        "out": _("Output tokens"),
        "request": _("Request"),
    },
    "tokens": {
        "tokens_in_text": _("Text tokens"),
        "tokens_in_image": _("Image tokens"),
        "tokens_in_cached": _("Cached tokens"),
        "tokens_out": _("Output tokens"),
    },
    "policy": {
        "": _("all of it"),
        "delivered": _("the prompt, and what was generated"),
        "prompt": _("the prompt only"),
        "nothing": _("nothing"),
    },
    "period": {"day": _("per day"), "month": _("per month"), "life": _("for life (prepaid)")},
    "by": {"team": _("Team"), "key": _("Key"), "model": _("Model")},
    "invoice": {
        "draft": _("Draft"),
        "issued": pgettext_lazy("invoice", "Issued"),
        "overdue": _("Overdue"),
        "paid": _("Paid"),
        "void": _("Void"),
    },
    "role": {
        "owner": _("Owner"),
        "admin": _("Administrator"),
        "billing": _("Billing"),
        "member": _("Member"),
        "viewer": _("Viewer"),
    },
    "document": {"invoice": _("Invoice"), "credit_note": _("Credit note")},
}


def word(value: str, vocabulary: str) -> Promise | str:
    """Return the word for a value, or the value where there is none."""
    return WORDS[vocabulary].get(value, value)
