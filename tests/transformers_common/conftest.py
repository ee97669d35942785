"""What pytest has to know about the fetched tests: their markers, and that none skips for a reason of its own."""

import pytest

from .skipped import SKIPPED

MARKERS = (
    "accelerate_tests",
    "flash_attn_test",
    "flash_attn_3_test",
    "flash_attn_4_test",
    "slow",
    "torch_compile_test",
)


def pytest_configure(config):
    for marker in MARKERS:
        config.addinivalue_line("markers", f"{marker}: set by the common tests of transformers")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.skipped and call.excinfo is not None and str(call.excinfo.value) not in SKIPPED.values():
        report.outcome = "failed"
        report.longrepr = (
            f"{item.nodeid} skipped itself ({call.excinfo.value}); run it, or give the reason in skipped.py"
        )
    return report
