"""docs/configuration.md says what the schema says."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from omegaconf import MISSING, OmegaConf

from autoresearch_hpc.config import Config

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_configuration", ROOT / "docs" / "generate_configuration.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _yaml(value: object) -> str:
    """A default as YAML writes it, unquoted."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{', '.join(map(_yaml, value))}]"
    if isinstance(value, dict) and value:
        return f"{{{', '.join(f'{key}: {_yaml(inner)}' for key, inner in value.items())}}}"
    return '""' if value == "" else str(value).replace("'", "")


def test_the_page_is_up_to_date(generator: ModuleType) -> None:
    assert generator.main(["--check"]) == 0, "run: make docs"


def test_every_key_of_the_schema_has_a_line_with_its_default(generator: ModuleType) -> None:
    lines = generator.page(generator.read_schema(generator.source())).splitlines()
    rows = {line.split("`")[1]: line for line in lines if line.startswith("| `")}
    schema = OmegaConf.structured(Config)

    def check(node: object, prefix: str) -> None:
        for key in node:  # type: ignore[attr-defined]
            path = f"{prefix}{key}"
            if OmegaConf.is_missing(node, key):
                assert "| required |" in rows[path]
                continue
            value = node[key]  # type: ignore[index]
            if OmegaConf.is_dict(value) and value:  # a group
                check(value, f"{path}.")
                continue
            plain = OmegaConf.to_container(value) if OmegaConf.is_config(value) else getattr(value, "value", value)
            shown = _yaml(plain)
            assert f"| `{shown}` |" in rows[path], path

    check(schema, "")
    assert len(rows) > 60
    assert MISSING not in rows


def test_every_key_has_a_meaning(generator: ModuleType) -> None:
    schema = generator.read_schema(generator.source())
    silent = [
        f"{name}.{key.name}" for name, r in schema.items() for key in r.keys if not key.meaning and not key.record
    ]
    assert silent == []


def test_a_table_cell_cannot_break_the_table(generator: ModuleType) -> None:
    source = (
        "@dataclass\nclass Config:\n    '''A run.'''\n\n"
        "    mode: str | None = None  # a|b, or `c`\n"
        "    more: list[str] = field(\n        default_factory=lambda: ['x', 'y']\n    )  # behind the last line\n"
    )
    text = generator.page(generator.read_schema(source))
    assert r"| `mode` | text or null | `null` | a\|b, or `c` |" in text
    assert "| `more` | list of texts | `[x, y]` | behind the last line |" in text


def test_check_notices_an_old_page(generator: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "configuration.md"
    monkeypatch.setattr(generator, "PAGE", page)
    assert generator.main(["--check"]) == 1
    assert generator.main([]) == 0
    assert generator.main(["--check"]) == 0
    page.write_text(page.read_text() + "\n")
    assert generator.main(["--check"]) == 1
