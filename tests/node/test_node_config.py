"""The node's configuration: what is refused, with which words, and that the example is right."""

import itertools
import json
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from cddnet.config import ConfigError
from cddnet.errors import ModelError
from cddnet.node.settings import config as module
from cddnet.node.settings.config import NodeConfig, load_node
from cddnet.node.settings.parts import Part

EXAMPLE = Path(__file__).parents[2] / "deploy" / "node.yaml"
LEAST = {"allowed_callers": ["CT1"], "folder": "state"}
ARCHIVE = {"kind": "dicom", "host": "pacs", "port": 104, "ae_title": "PACS"}
WEB = {"kind": "dicomweb", "url": "https://pacs.example/dicom-web"}
RULE = {"name": "all", "do": [{"destinations": ["pacs"]}]}
FULL = LEAST | {"destinations": {"pacs": ARCHIVE, "web": WEB}, "rules": [RULE]}
TOKEN = "0123456789abcdef"


def load(folder, values):
    file = folder / "node.yaml"
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    return load_node(file)


def changed(values, path, value):
    """A deep copy with one value set, or added, at a path of keys and places."""
    copy = json.loads(json.dumps(values))
    part = copy
    for step in path[:-1]:
        part = part.setdefault(step, {}) if isinstance(part, dict) else part[step]
    part[path[-1]] = value
    return copy


def test_the_example_is_a_configuration():
    config = load_node(EXAMPLE)
    assert config.rules[0].name == "no reformats"
    assert config.rules[0].do == ()
    assert [output.strength for output in config.rules[1].do] == [0.5, 1.0]
    assert config.folder == Path("/var/lib/cddnet-node")
    assert {place.kind for place in config.destinations.values()} == {"dicom", "dicomweb"}


def test_the_least_one_must_say_gives_a_node_that_ignores_all(tmp_path):
    config = load(tmp_path, LEAST)
    assert config.folder == tmp_path / "state"
    assert config.rules == ()
    assert config.http.secret() is None
    assert config.host == config.http.host == "127.0.0.1"
    with pytest.raises(ValidationError):
        config.quiet_s = 1


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        (("allowed_callers",), [], "allowed_callers: expected a list of AE titles, or the word"),
        (("allowed_callers",), "CT1", "neither a list of AE titles nor the word any"),
        (("allowed_callers",), ["CT1", "any"], "the word any stands alone"),
        (("allowed_callers",), ["A" * 17], "allowed_callers.0: an AE title has 1 to 16"),
        (("ae_title",), "A\\B", "ae_title: an AE title has 1 to 16"),
        (("ae_title",), "  ", "ae_title: an AE title has 1 to 16"),
        (("dicom_port",), 0, "dicom_port: Input should be greater than or equal to 1"),
        (("dicom_port",), 65536, "dicom_port: Input should be less than or equal to 65535"),
        (("dicom_port",), 8080, "dicom_port and http.port are both 8080"),
        (("folde",), "x", "folde: there is no such key (did you mean 'folder'?)"),
        (("http", "host"), "0.0.0.0", "http: host 0.0.0.0 can be reached from other machines"),
        (("http", "token"), "short", "http: the token has fewer than 16 characters"),
        (("http", "proxies"), ["10.1.2.3/8"], "http.proxies.0: expected an address or a network"),
        (("http", "tokn"), TOKEN, "http.tokn: there is no such key (did you mean 'token'?)"),
        (("destinations", "pacs", "prot"), 1, "pacs.dicom.prot: there is no such key (did you"),
        (("destinations", "pacs", "kind"), "ftp", "destinations.pacs: "),
        (("destinations", "pacs", "retries"), {"first_s": 60, "longest_s": 9}, "longest_s is sho"),
        (("destinations", "web", "url"), "pacs/dicom-web", "expected an address that starts"),
        (("destinations", "web", "url"), "https://me:pw@pacs/x", "no password, query or fragment"),
        (("destinations", "pacs", "tls"), {"key": "k"}, "certificate and key belong together"),
        (("rules", 0, "when"), {"kernl": "x"}, "rules.0.when.kernl: there is no such key (did"),
        (("rules", 0, "when"), {"kernel": "(B"}, "rules.0.when.kernel: is no regular expression"),
        (("rules", 0, "when"), {"kernel": "^B(?!r)"}, "put a rule with `do: ignore` before this"),
        (
            ("rules", 0, "when"),
            {"kernel": r"(B)\1"},
            "RE2 has no look-around and no back references",
        ),
        (("rules", 0, "when"), {"kernel": "((B{99}){99}){99}"}, "is no regular expression of RE2"),
        (("rules", 0, "when"), {"thickness_mm": [3, 1]}, "expected [smallest, largest] in mm"),
        (("rules", 0, "do"), "ignor", "rules.0.do: expected a list of outputs, or the word ignore"),
        (("rules", 0, "do"), [], "rules.0.do: expected a list of outputs, or the word ignore"),
        (("rules", 0, "do", 0, "strength"), 1.1, "rules.0.do.0.strength: Input should be less"),
        (("rules", 0, "do", 0, "destinations"), ["pac"], "'pac' (did you mean 'pacs'?)"),
        (("rules", 0, "do", 0, "destinations"), ["zzz"], "'zzz'; add it to destinations"),
        (("rules", 0, "do", 0, "destinations"), ["pacs", "pacs"], "a destination is named twice"),
        (("rules",), [RULE, RULE], "two rules are named 'all'"),
    ],
)
def test_what_is_wrong_is_said_where_it_is(tmp_path, path, value, told):
    load(tmp_path, FULL)
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, changed(FULL, path, value))
    assert told in str(caught.value)


def test_outputs_of_one_recipe_are_refused_wherever_they_go(tmp_path):
    destinations = dict.fromkeys(("one", "two"), FULL["destinations"]["pacs"])
    outputs = [{"strength": 0.5, "destinations": [name]} for name in destinations]
    rule = {"name": "r", "do": outputs}
    values = LEAST | {"destinations": destinations, "rules": [rule]}
    with pytest.raises(ConfigError, match="outputs 1 and 2 would be the same images"):
        load(tmp_path, values)
    apart = changed(values, ("rules", 0, "do", 1, "strength"), 0.75)
    assert len(load(tmp_path, apart).rules[0].do) == 2


def test_all_faults_are_told_at_once(tmp_path):
    wrong = changed(FULL, ("dicom_port",), -1)
    wrong = changed(wrong, ("rules", 0, "when"), {"kernl": "x", "station": "["})
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, wrong | {"quiet": 3})
    for told in ("dicom_port", "rules.0.when.kernl", "rules.0.when.station", "quiet_s"):
        assert told in str(caught.value)


def test_unknown_weights_are_refused_before_the_node_starts(tmp_path):
    with pytest.raises(ModelError, match="there are no weights 'cddnt'"):
        load(tmp_path, changed(FULL, ("rules", 0, "do", 0, "model"), "cddnt"))


def test_relative_paths_start_at_the_file_at_any_depth(tmp_path):
    (tmp_path / "w.safetensors").touch()
    values = changed(FULL, ("rules", 0, "do", 0, "model"), "w.safetensors")
    values = changed(values, ("destinations", "pacs", "tls"), {"ca": "ca.pem"})
    values = changed(values, ("tls",), {"certificate": "/etc/c.pem", "key": "k.pem"})
    config = load(tmp_path, values)
    assert config.rules[0].do[0].model == str(tmp_path / "w.safetensors")
    assert config.destinations["pacs"].tls.ca == tmp_path / "ca.pem"
    assert (config.tls.certificate, config.tls.key) == (Path("/etc/c.pem"), tmp_path / "k.pem")


def test_the_token_comes_from_its_file(tmp_path):
    values = LEAST | {"http": {"host": "0.0.0.0", "token_file": "t"}}
    config = load(tmp_path, values)
    for content in (None, "short", b"\xff\xff" * 20):
        if content is not None:
            (tmp_path / "t").write_bytes(content if isinstance(content, bytes) else b"short")
        with pytest.raises(ConfigError, match="the token"):
            config.http.secret()
    (tmp_path / "t").write_text(f"\n{TOKEN}\n", encoding="utf-8")
    assert config.http.secret() == TOKEN


@given(st.text("abcdefghijkXYZ-_!", min_size=8, max_size=15))
def test_a_refusal_does_not_quote_a_token(token):
    for http in ({"token": token}, {"token": token + TOKEN, "token_file": "f"}):
        with pytest.raises(ConfigError) as caught:
            module.checked(LEAST | {"http": http}, NodeConfig, "node.yaml")
        assert token not in str(caught.value)
    shown = repr(NodeConfig.model_validate(LEAST | {"http": {"token": token + TOKEN}}))
    assert token not in shown


@given(st.text("ABCab 1_-", min_size=1, max_size=20))
def test_exactly_the_listed_callers_may_send(caller):
    config = NodeConfig.model_validate(LEAST | {"allowed_callers": ["AB", "1_-"]})
    assert config.permits(caller) == (caller.strip() in ("AB", "1_-"))
    assert NodeConfig.model_validate(LEAST | {"allowed_callers": "any"}).permits(caller)


def parts(kind=Part):
    for part in kind.__subclasses__():
        yield part
        yield from parts(part)


def test_every_key_says_what_it_is_for():
    found = list(parts())
    assert {NodeConfig, module.Rule, module.Output, module.DicomDestination} <= set(found)
    for part in found:
        assert issubclass(part, BaseModel)
        assert part.model_config["frozen"]
        assert part.model_config["extra"] == "forbid"
        assert all(field.description for field in part.model_fields.values()), part.__name__


DOCUMENT = EXAMPLE.parents[1] / "docs" / "node.md"


def rows_below(head):
    """(First cell, the others) of the table of the documentation that begins with a line."""
    lines = DOCUMENT.read_text(encoding="utf-8").split(f"\n{head}\n")[1].splitlines()[1:]
    for line in itertools.takewhile(lambda line: line.startswith("|"), lines):
        first, rest = line.strip("| ").split(" | ", 1)
        yield first, rest


def keys_in(text):
    return {name for name in re.findall(r"`([\w.]+)(?=[:`])", text) if name.islower()}


@pytest.mark.parametrize(
    ("head", "part"),
    [
        ("| key | meaning | default |", NodeConfig),
        ("| in `when` | holds if |", module.Conditions),
        ("| in `do` | meaning | default |", module.Output),
    ],
)
def test_the_documentation_lists_exactly_the_keys_there_are(head, part):
    told = [name for first, _ in rows_below(head) for name in keys_in(first)]
    assert sorted(told) == sorted(part.model_fields)


def test_the_documentation_lists_the_keys_of_the_smaller_parts():
    told = {first.strip("`"): keys_in(rest) for first, rest in rows_below("| destination | keys |")}
    top = {
        first.strip("`"): keys_in(rest) for first, rest in rows_below("| key | meaning | default |")
    }
    tls = set(module.ClientTls.model_fields)
    assert told["kind: dicom"] - {"true"} == {*module.DicomDestination.model_fields, *tls} - {
        "kind"
    }
    assert told["kind: dicomweb"] == {*module.DicomwebDestination.model_fields} - {"kind"}
    assert told["retries"] == set(module.Retries.model_fields)
    assert top["tls"] == set(module.ServerTls.model_fields)
    assert top["http"] == set(module.HttpConfig.model_fields)


def test_the_documentation_lists_exactly_the_figures_and_engines_there_are(tmp_path):
    from cddnet.node.watch.metrics import NodeMetrics
    from cddnet.runtime import engines

    class Empty:
        def queue(self):
            return []

        def oldest_unfinished_at(self):
            return None

        def used_bytes(self):
            return 0

        def aside(self):
            return 0

    config = NodeConfig.model_validate(FULL | {"folder": tmp_path})
    metrics = NodeMetrics(Empty(), config, Empty()).text().decode()
    names = set(re.findall(r"^# TYPE cddnet_node_(\w+)", metrics, re.MULTILINE))
    listed = {
        re.sub(r"\{.*", "", name)
        for first, _ in rows_below("| name | of what |")
        for name in re.findall(r"`([^`]+)`", first)
    }
    assert listed == {name for name in names if not name.endswith("_created")}
    (told,) = (
        rest for first, rest in rows_below("| in `do` | meaning | default |") if "engine" in first
    )
    assert keys_in(told) == {"auto", *engines.names()}


def test_the_documentation_names_the_defaults():
    """Each number in the last column of the table of the configuration, in order."""
    text = (EXAMPLE.parents[1] / "docs" / "node.md").read_text(encoding="utf-8")
    told = {}
    for keys, default in re.findall(r"^\| (`[^|]*) \|[^|]*\| ([^|]*) \|$", text, re.MULTILINE):
        names = re.findall(r"`(\w+)`", keys)
        told |= dict(zip(names, default.replace("`", "").split(", "), strict=False))
    numbers = {
        name: field.default
        for name, field in NodeConfig.model_fields.items()
        if isinstance(field.default, int | float)
    }
    assert len(numbers) == 12
    assert {name: float(told[name]) for name in numbers} == numbers
