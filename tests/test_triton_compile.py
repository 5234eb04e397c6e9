"""The triton kernels compile for GPUs that are not here, fit their shared memory, and spill nothing."""

from __future__ import annotations

import pytest
import triton

from benchmarks import kernel_resources
from scorefast.kernels.triton import INTERPRETED

pytestmark = pytest.mark.skipif(INTERPRETED, reason="TRITON_INTERPRET=1 leaves nothing to compile")


@pytest.mark.parametrize("sm", kernel_resources.SHARED_LIMIT)
def test_kernels_fit_the_architecture_and_the_committed_table_is_true(sm):
    table = kernel_resources.TABLE.read_text(encoding="utf-8")
    same_compiler = f"triton {triton.__version__}," in table
    for used in kernel_resources.all_resources(sm):
        assert used.stack == 0, f"{used.kernel} spills registers"
        assert used.shared <= kernel_resources.SHARED_LIMIT[sm], used
        assert used.registers <= 255
        if same_compiler:
            assert kernel_resources.row(used) in table, "run `python -m benchmarks kernel_resources` again"
