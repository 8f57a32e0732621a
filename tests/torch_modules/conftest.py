"""The tests of numbabn.torch run where torch is: in py311."""

import importlib.util

if importlib.util.find_spec("torch") is None:
    collect_ignore_glob = ["test_*.py"]
