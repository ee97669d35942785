"""The tests that ship in the source distribution of the installed transformers, made importable.

Run as a script, as `make test` does, it fetches them once from the package index; pip and the standard library suffice.
"""

import importlib
import os
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from types import ModuleType

TRANSFORMERS = version("transformers")
CACHE = Path(__file__).resolve().parents[2] / ".cache"
FOLDER = CACHE / f"transformers-{TRANSFORMERS}" / "tests"
HOW_TO_FETCH = (
    f"the common tests of transformers {TRANSFORMERS} are not at {FOLDER}; fetch them with "
    "`python tests/transformers_common/sdist.py`"
)
# A name of its own: `tests` is taken by this project, and by many others.
PACKAGE = "transformers_sdist_tests"


def fetch() -> None:
    """Download the source distribution of the installed transformers and unpack its shared test modules into `FOLDER`.

    Raises:
        RuntimeError: pip could not download it.
    """
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        download += ["--no-binary", "transformers", "--dest", scratch, f"transformers=={TRANSFORMERS}"]
        if subprocess.run(download).returncode:
            raise RuntimeError(f"pip could not download the source of transformers {TRANSFORMERS}; is there a network?")
        (archive,) = Path(scratch).glob("transformers-*.tar.gz")
        unpacked = Path(scratch) / "tests"
        unpacked.mkdir()
        with tarfile.open(archive) as tar:
            for member in tar:
                path = PurePosixPath(member.name)
                if path.parent.name == "tests" and len(path.parts) == 3 and path.suffix == ".py":
                    (unpacked / path.name).write_bytes(tar.extractfile(member).read())
        # The source distribution leaves it out, and test_configuration_common.py loads it by its path.
        (unpacked / "__init__.py").touch()
        FOLDER.parent.mkdir(exist_ok=True)
        # A rename is atomic: a folder that exists is whole.
        os.replace(unpacked, FOLDER)


def load(name: str) -> ModuleType:
    """Import one of the fetched test modules, for example "test_modeling_common".

    The fetched modules import each other relatively, so they become a package. Three modules they import are not in the
    source distribution. Stand-ins take their place; those of generation and of the exporters are empty.
    """
    if PACKAGE not in sys.modules:
        package = _module(PACKAGE)
        package.__path__ = [str(FOLDER)]
        for folder in ("exporters", "generation", "utils"):
            _module(f"{PACKAGE}.{folder}").__path__ = []
        _module(f"{PACKAGE}.exporters.test_export").ExportTesterMixin = type("ExportTesterMixin", (), {})
        _module(f"{PACKAGE}.generation.test_utils").GenerationTesterMixin = type("GenerationTesterMixin", (), {})
        # Values unlike the defaults for what every configuration takes, to be found again on the object.
        _module(f"{PACKAGE}.utils.test_configuration_utils").config_common_kwargs = {
            "architectures": ["A2MAEModel"],
            "chunk_size_feed_forward": 3,
            "dtype": "float16",
            "id2label": {0: "forest", 1: "water"},
            "label2id": {"forest": 0, "water": 1},
            "output_attentions": True,
            "output_hidden_states": True,
            "problem_type": "regression",
            "return_dict": False,
        }
    return importlib.import_module(f"{PACKAGE}.{name}")


def _module(name: str) -> ModuleType:
    return sys.modules.setdefault(name, ModuleType(name))


if __name__ == "__main__":
    if not FOLDER.is_dir():
        print(f"Fetching the common model tests of transformers {TRANSFORMERS} into {FOLDER.parent}", flush=True)
        try:
            fetch()
        except RuntimeError as error:
            sys.exit(str(error))
