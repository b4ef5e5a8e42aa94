"""Filters of `dashboard.figures` for templates."""

from django import template

from dashboard import figures, wording

register = template.Library()

register.filter("grouped", figures.grouped)
register.filter("amount", figures.amount)
register.filter("headline", figures.headline)
register.filter("exact", figures.exact)
register.filter("price", figures.price)
register.filter("invoiced", figures.minor)
register.filter("word", wording.word)


@register.simple_tag(takes_context=True)
def link(context: template.Context, **changes: object) -> str:
    """Return the page's own query with some of it changed; what is set to nothing goes, and the place in a list."""
    query = context["request"].GET.copy()
    for name in ("after", "before"):
        query.pop(name, None)
    for name, value in changes.items():
        query.pop(name, None)
        if value:
            query[name] = str(value)
    return f"?{query.urlencode()}"
