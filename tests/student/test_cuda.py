"""The GPU kernel against the CPU; without a GPU, where triton is installed, with `TRITON_INTERPRET=1`."""

import numpy as np
import pytest

from nncift.errors import ResourceError
from nncift.student import cuda
from nncift.student import network_kernels as kernels


@pytest.mark.skipif(not cuda.available(), reason="needs triton, and CUDA or TRITON_INTERPRET=1")
@pytest.mark.parametrize(("n", "m", "hidden"), [(1, 1, 1), (130, 70, 13), (128, 64, 100), (5, 200, 8), (3, 0, 4)])
def test_the_gpu_gives_what_the_cpu_gives(n: int, m: int, hidden: int) -> None:
    random = np.random.default_rng(n)
    a, b, v = (random.normal(size=size).astype(np.float32) for size in ((n, hidden), (m, hidden), hidden))
    found = cuda.relu_block(a, b, v, 0.25)
    assert found.dtype == np.float32
    assert np.allclose(found, kernels.relu_block(a, b, v, 0.25), rtol=0, atol=2e-5)


@pytest.mark.skipif(cuda.available(), reason="the kernel can run here")
def test_without_a_gpu_it_says_what_is_missing() -> None:
    with pytest.raises(ResourceError, match="needs a CUDA device and the package triton"):
        cuda.relu_block(*(np.ones((1, 1), np.float32),) * 2, np.ones(1, np.float32), 0.0)
