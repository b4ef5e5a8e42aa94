import io
import json
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError
from django.utils.timezone import now

from gateway import catalog, console
from gateway.models import Backend, Model
from tenants.models import AuditEntry
from tests import factories
from tests.console import run, run_json
from tests.door import free_port
from tests.fake_backend import FakeBackend, Hang, Send, head, status

pytestmark = pytest.mark.usefixtures("empty_database")

SECRET = "afs-5ecret"
URL = "https://afs.example.com/api/models"


@pytest.fixture(autouse=True)
def credential(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFS_KEY", f" {SECRET}\n")


@pytest.fixture
def vlm() -> Model:
    """A model that the backend `local` answers for, under another name."""
    local = factories.backend("http://127.0.0.1:1/v1", name="local")
    return factories.model(local, name="vlm", backend_model="reader")


def served(name: str) -> list[tuple[str, str, str]]:
    """Return what the data plane would use for the model: backend, its name there, credential."""
    entry = catalog.load().models[name]
    return [(r.backend.name, r.backend_model, r.backend.credential) for r in entry.routes]


def row_of(noun: str, name: str) -> dict[str, Any]:
    rows: list[dict[str, Any]] = run_json(noun, "list")
    return next(row for row in rows if row["name"] == name)


def actions(since: int) -> list[str]:
    entries = AuditEntry.objects.filter(id__gt=since).order_by("id")
    return list(entries.values_list("action", flat=True))


def last_entry() -> int:
    newest = AuditEntry.objects.order_by("id").last()
    return newest.pk if newest else 0


# One command repoints a model.


def test_one_command_repoints_a_model_at_a_real_service(vlm: Model) -> None:
    before = last_entry()

    out, err = run(
        "backend", "add", "afs", "--url", f"{URL}/", "--credential-env=AFS_KEY", "--model", "vlm"
    )

    assert served("vlm") == [("afs", "vlm", SECRET)]
    assert Backend.objects.get(name="afs").base_url == URL
    assert "vlm is no longer answered by local" in err
    assert SECRET not in out + err
    assert actions(before) == ["backend.create", "route.create", "route.change"]


def test_the_routes_it_replaces_are_kept_behind_it(vlm: Model) -> None:
    run("backend", "add", "afs", "--url", URL, "--model", "vlm", "--backend-model", "ffm")
    run("model", "route", "vlm", "--backend", "local")

    assert [backend for backend, _, _ in served("vlm")] == ["afs", "local"]
    assert row_of("model", "vlm")["backends"] == ["afs:ffm", "local:reader"]


def test_several_models_are_repointed_at_once(vlm: Model) -> None:
    factories.model(Backend.objects.get(name="local"), name="other")

    run("backend", "add", "afs", "--url", URL, "--model", "vlm", "--model", "other", "vlm")

    assert served("vlm") == [("afs", "vlm", "")]
    assert served("other") == [("afs", "other", "")]


def test_a_model_that_is_not_there_leaves_nothing_half_done(vlm: Model) -> None:
    with pytest.raises(CommandError, match="There is no model 'vlmm'"):
        run("backend", "add", "afs", "--url", URL, "--model", "vlm", "vlmm")

    assert not Backend.objects.filter(name="afs").exists()
    assert [backend for backend, _, _ in served("vlm")] == ["local"]


def test_a_route_that_cannot_be_saved_takes_the_backend_with_it(vlm: Model) -> None:
    with pytest.raises(CommandError, match="backend_model"):
        run("backend", "add", "afs", "--url", URL, "--model", "vlm", "--backend-model", "x" * 201)

    assert not Backend.objects.filter(name="afs").exists()


# Backends.


def test_an_existing_backend_is_not_added_again(vlm: Model) -> None:
    with pytest.raises(CommandError, match="already: backend set local"):
        run("backend", "add", "local", "--url", URL)


def test_a_host_of_one_label_will_do() -> None:
    run("backend", "add", "afs", "--url", "http://vllm:8000/v1", "--kind", "vllm")

    assert row_of("backend", "afs")["url"] == "http://vllm:8000/v1"


@pytest.mark.parametrize("source", ["file", "stdin"])
def test_a_credential_comes_from_a_file_or_standard_input(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "key"
    path.write_text(f"{SECRET}\n")
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{SECRET}\n"))

    run(
        "backend",
        "add",
        "afs",
        "--url",
        URL,
        "--credential-file",
        "-" if source == "stdin" else str(path),
    )

    assert console.credential_of(Backend.objects.get(name="afs")) == SECRET


def test_a_listing_has_no_credential_and_the_database_no_plain_one(vlm: Model) -> None:
    run("backend", "set", "local", "--credential-env=AFS_KEY")

    listing = run("backend", "list")[0] + json.dumps(run_json("backend", "list"))
    assert SECRET not in listing
    assert row_of("backend", "local")["credential"] == "stored"
    assert SECRET.encode() not in bytes(Backend.objects.get(name="local").credential_encrypted)


def test_set_changes_what_is_given_and_nothing_else(vlm: Model) -> None:
    before = last_entry()

    _, err = run(
        "backend", "set", "local", "--url", URL, "--total-timeout-s", "900", "--kind", "openai"
    )

    row = row_of("backend", "local")
    assert (row["url"], row["total_timeout_s"], row["credential"]) == (URL, 900, "stored")
    assert "local: changed total_timeout_s, url." in err
    assert actions(before) == ["backend.change"]


def test_a_credential_is_forgotten_on_request(vlm: Model) -> None:
    run("backend", "set", "local", "--no-credential")

    assert served("vlm") == [("local", "reader", "")]


def test_an_inactive_backend_is_not_used_and_can_be_used_again(vlm: Model) -> None:
    run("backend", "set", "local", "--no-active")
    assert served("vlm") == []
    assert row_of("model", "vlm")["backends"] == ["local:reader (off)"]

    run("backend", "set", "local", "--active")
    assert [backend for backend, _, _ in served("vlm")] == ["local"]


def test_a_change_that_changes_nothing_is_not_recorded(vlm: Model) -> None:
    before = last_entry()

    _, err = run("backend", "set", "local", "--kind", "openai", "--active")

    assert "is so already" in err
    assert actions(before) == []


def test_a_backend_is_removed_only_when_no_model_is_routed_to_it(vlm: Model) -> None:
    with pytest.raises(CommandError, match="local has routes from vlm"):
        run("backend", "remove", "local")

    run("model", "unroute", "vlm", "--backend", "local")
    run("backend", "remove", "local")

    assert not Backend.objects.filter(name="local").exists()
    assert AuditEntry.objects.latest("id").action == "backend.delete"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("backend add x --url host/v1", "is not an address"),
        ("backend add x --url https://u:p@host/v1", "holds no credential"),
        ("backend add x! --url https://host/v1", "name: "),
        ("backend add x --url https://host --total-timeout-s 0", "total_timeout_s"),
        ("backend add x --url https://host --backend-model y", "give --model"),
        ("backend add x --url https://host --credential-env afs-5ecret", "no such variable"),
        ("backend add x --url https://host --credential-env EMPTY", "1 to 4096 characters"),
        ("backend add x --url https://host --credential-env TWO_LINES", "one word"),
        ("backend add x --url https://host --credential-file /nowhere/at/all", "No such file"),
        ("backend set local", "say what to change"),
        ("backend set local --no-credential --credential-env AFS_KEY", "not both"),
        ("backend set nope --active", "There is no backend 'nope'. Known: "),
        ("backend check nope", "There is no backend 'nope'"),
        ("model add vlm --counter generic", "already exists"),
        ("model add v*m --counter generic", "letters, digits"),
        ("model add new --counter nope", "invalid choice"),
        ("model add new", "--counter"),
        ("model add new --counter generic --context 0", "context_tokens"),
        ("model add new --counter generic --out-default 9000", "fits neither"),
        ("model set vlm", "say what to change"),
        ("model set nope --context 1", "There is no model 'nope'. Known: "),
        ("model route vlm --backend nope", "There is no backend 'nope'"),
        ("model route vlm --backend local --priority -1", "priority"),
        ("model unroute vlm --backend spare", "vlm has no route to spare"),
        ("model disable nope", "There is no model"),
    ],
)
def test_a_mistake_is_one_clear_line_and_changes_nothing(
    vlm: Model, monkeypatch: pytest.MonkeyPatch, words: str, message: str
) -> None:
    monkeypatch.setenv("EMPTY", " ")
    monkeypatch.setenv("TWO_LINES", "a\nb")
    factories.backend(URL, name="spare")
    before = last_entry()

    with pytest.raises(CommandError) as error:
        run(*words.split())

    assert message in str(error.value)
    assert SECRET not in str(error.value)
    assert actions(before) == []


# Asking a backend for its models.


def offer(*names: str) -> list[Any]:
    body = json.dumps({"object": "list", "data": [{"id": name} for name in names]})
    return [Send(head()), Send(body.encode())]


def test_check_prints_what_the_backend_offers(vlm: Model, fake_backend: FakeBackend) -> None:
    run("backend", "set", "local", "--url", fake_backend.url, "--credential-env=AFS_KEY")
    fake_backend.script(offer("reader", "writer"))

    out, err = run("backend", "check", "local")

    assert out == "reader\nwriter\n"
    assert "Not among them" not in err
    assert SECRET not in err
    assert fake_backend.asked[0].headers["authorization"] == f"bearer {SECRET}"


def test_check_names_the_routes_that_the_backend_has_no_model_for(
    vlm: Model, fake_backend: FakeBackend
) -> None:
    run("backend", "set", "local", "--url", fake_backend.url)
    fake_backend.script(offer("writer"))

    assert (
        "Not among them: reader, which the model vlm is routed to"
        in run("backend", "check", "local")[1]
    )


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (status(401), "refuses the stored credential"),
        (status(404), "has no /models"),
        (status(302), "redirects"),
        (status(500), "answered 500"),
        ([Send(head()), Send(b"<html>")], "not with OpenAI's list of models"),
        ([Send(head()), Send(b'{"data": "no"}')], "not with OpenAI's list of models"),
        ([Send(head()), Send(b" " * (2**20 + 1))], "does not end"),
        ([], "cannot be reached"),
    ],
    ids=["401", "404", "302", "500", "html", "shape", "endless", "silent end"],
)
def test_check_says_what_is_wrong(
    vlm: Model, fake_backend: FakeBackend, steps: list[Any], message: str
) -> None:
    run("backend", "set", "local", "--url", fake_backend.url)
    fake_backend.script(steps)

    with pytest.raises(CommandError, match=message):
        run("backend", "check", "local")


def test_check_does_not_wait_for_ever(vlm: Model, fake_backend: FakeBackend) -> None:
    run("backend", "set", "local", "--url", fake_backend.url)
    fake_backend.script([Hang()])

    with pytest.raises(CommandError, match="did not answer within 1 s"):
        run("backend", "check", "local", "--timeout-s", "1")


def test_check_of_a_closed_port_says_that_it_cannot_be_reached(vlm: Model) -> None:
    run("backend", "set", "local", "--url", f"http://127.0.0.1:{free_port()}/v1")

    with pytest.raises(CommandError, match=r"cannot be reached: .*refused"):
        run("backend", "check", "local")


# Models.


def test_from_nothing_to_a_model_that_is_served() -> None:
    run("backend", "add", "afs", "--url", URL)
    run("model", "add", "new", "--counter=llama-3.2-vision", "--context=4096", "--images-max=2")

    assert row_of("model", "new")["backends"] == []
    assert "no price: refused" in run("model", "list")[0]
    assert "no backend: refused" in run("model", "list")[0]

    run("model", "route", "new", "--backend", "afs")
    run("price", "set", "new", "--currency=USD", "--text-in=1", "--image-in=1", "--out=2", "--yes")

    assert served("new") == [("afs", "new", "")]
    row = row_of("model", "new")
    assert (row["context"], row["images_max"], row["price"]) == (4096, 2, ["USD"])


def test_a_price_to_come_is_no_price_yet(vlm: Model) -> None:
    factories.price("later", effective_from=now().replace(year=2090))
    Model.objects.create(name="later", counter="generic")

    assert row_of("model", "later")["price"] == []
    assert row_of("model", "vlm")["price"] == ["TWD"]


def test_set_changes_the_model_and_nothing_else(vlm: Model) -> None:
    run("model", "set", "vlm", "--images-max", "0", "--counter", "generic")

    row = row_of("model", "vlm")
    assert (row["images_max"], row["counter"], row["context"]) == (0, "generic", 32_768)


def test_the_lowest_priority_number_answers_first(vlm: Model) -> None:
    factories.backend(URL, name="afs")

    run("model", "route", "vlm", "--backend", "afs", "--backend-model", "ffm", "--priority", "1")
    assert [backend for backend, _, _ in served("vlm")] == ["afs", "local"]

    _, err = run("model", "route", "vlm", "--backend", "afs", "--priority", "20")
    assert [backend for backend, _, _ in served("vlm")] == ["local", "afs"]
    assert "vlm is answered by: local:reader, then afs:ffm" in err


def test_only_turns_the_other_routes_off(vlm: Model) -> None:
    factories.backend(URL, name="afs")

    run("model", "route", "vlm", "--backend", "afs", "--only")

    assert [backend for backend, _, _ in served("vlm")] == ["afs"]


def test_a_model_is_disabled_and_enabled(vlm: Model) -> None:
    before = last_entry()

    run("model", "disable", "vlm")
    assert "vlm" not in catalog.load().models
    _, again = run("model", "disable", "vlm")
    run("model", "enable", "vlm")

    assert "vlm" in catalog.load().models
    assert "already" in again
    assert actions(before) == ["model.change", "model.change"]


@pytest.mark.parametrize("noun", ["model", "backend"])
def test_a_listing_costs_the_same_number_of_queries_however_long(
    vlm: Model, noun: str, django_assert_max_num_queries: Any
) -> None:
    for _ in range(10):
        factories.model(factories.backend(URL))

    with django_assert_max_num_queries(4):
        assert len(run_json(noun, "list")) > 10
