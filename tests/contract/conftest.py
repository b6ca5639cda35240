"""The contract is a library module; its assertions should explain themselves like those of any test."""

import pytest

pytest.register_assert_rewrite("streamkeep.storage.contract")
