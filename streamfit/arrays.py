"""The one place that knows which array library and device a computation runs on.

Floor 1. Numeric code asks an array for its namespace (`namespace`) and stays in it; only this file names
cupy, and only this file moves data between host and device.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import array_api_compat
import numpy as np
import scipy.linalg
import scipy.sparse
from threadpoolctl import threadpool_info

from streamfit.errors import ConfigError

Array = Any
"""An array of any library that follows the array API standard (NumPy, CuPy, array-api-strict)."""

Precision = Literal["float32", "float64", "tf32", "bf16"]
"""What features and block products are computed in; see `streamfit.precision`. Sums are float64 always."""

Backend = Literal["numpy", "cuda"]
"""Array library that a worker computes with."""
DEVICE_LIBRARY = "cupy"
"""What RAPIDS' memory pool calls the library of the backend 'cuda'."""

_SMALL_PRODUCT = 2**20
"""Multiplications of a product that is taken in float64: kernels for small matrices may add thousands of rows one after
another in the rows' own type, those for larger ones some hundred at a time."""
_TURNED = (2064, 192)
"""Rows, and bytes of a row, of a matrix that are turned at a time: what was measured best.

No multiple of 1,024 bytes of a column, or the columns would all be kept in the same few places of the cache.
"""
COLUMN_GAP = 96
"""Bytes between columns that lie one after another."""
_ALIGNED = 512
"""Bytes to whose multiples arrays begin in a piece of memory."""


def namespace(*arrays: Array) -> Any:
    """Array-API namespace of the arrays."""
    return array_api_compat.array_namespace(*arrays)


def device_of(array: Array) -> Any:
    """Device that the array lives on."""
    return array_api_compat.device(array)


def to_host(array: Array) -> np.ndarray:
    """Copy an array to host memory (no copy when it is there already)."""
    if isinstance(array, np.ndarray):
        return array
    if hasattr(array, "get"):  # cupy
        host: np.ndarray = array.get()
        return host
    xp = namespace(array)
    if hasattr(xp, "Device"):  # array-api-strict refuses implicit transfers, as a GPU does
        array = xp.asarray(array, device=xp.Device("CPU_DEVICE"))
    return np.asarray(array)


def to_device_of(host: np.ndarray, like: Array) -> Array:
    """Copy a host array to the library and device of `like`."""
    if isinstance(like, np.ndarray):
        return host
    return namespace(like).asarray(host, device=device_of(like))


def device_array(host: np.ndarray, backend: Backend) -> Array:
    """Put a host array where a worker of the given backend computes.

    Raises
    ------
    ConfigError
        If the backend is unknown, or `cuda` is asked for without CuPy or without a GPU.
    """
    if backend == "numpy":
        return host
    if backend != "cuda":
        msg = f"array backend {backend!r}"
        raise ConfigError(msg, "'numpy' or 'cuda'")
    return _cupy().asarray(host)


def _cupy() -> Any:
    """CuPy, with a device that it can use."""
    remedy = "pip install 'streamfit[cuda]' on a machine with an NVIDIA GPU, or use backend 'numpy'"
    if importlib.util.find_spec("cupy") is None:
        msg = "array backend 'cuda', but CuPy is not installed"
        raise ConfigError(msg, "an importable cupy", remedy)
    try:
        import cupy

        n_devices = cupy.cuda.runtime.getDeviceCount()
    except Exception as error:  # CuPy's errors are many, and none can be caught by name where its import fails
        msg = f"array backend 'cuda', but no usable GPU: {str(error).splitlines()[0]}"
        raise ConfigError(msg, "a CUDA device, its driver and cuBLAS", remedy) from error
    if not n_devices:
        msg = "array backend 'cuda', but no GPU"
        raise ConfigError(msg, "at least one CUDA device", remedy)
    return cupy


def compute_dtype(xp: Any, precision: Precision) -> Any:
    """Floating-point type of features and block products under a precision policy."""
    if precision not in get_args(Precision):
        msg = f"precision {precision!r}"
        raise ConfigError(msg, f"one of {', '.join(get_args(Precision))}")
    return xp.float64 if precision == "float64" else xp.float32


def has_bits(array: Array) -> bool:
    """Whether an array can be viewed as another type of the same size."""
    return isinstance(array, np.ndarray) or bool(array_api_compat.is_cupy_array(array))


def row_major(array: Array) -> Array:
    """Lay a matrix out row by row: a product's rounding depends on the layout, and equal rows must sum alike."""
    if not isinstance(array, np.ndarray) and not array_api_compat.is_cupy_array(array):
        return array
    if array.flags.c_contiguous:
        return array
    if not in_columns(array):
        return array.copy(order="C")
    rows, (height, width) = np.empty(array.shape, array.dtype), _TURNED
    width //= array.itemsize
    for top in range(0, array.shape[0], height):
        for left in range(0, array.shape[1], width):
            piece = slice(top, top + height), slice(left, left + width)
            rows[piece] = array[piece]
    return rows


def in_columns(array: Array) -> bool:
    """Whether a matrix in host memory lies column by column: each in one piece, with gaps between them or none."""
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.flags.c_contiguous:
        return False
    step, item = array.strides[1], array.itemsize
    return array.strides[0] == item and step >= array.shape[0] * item and step % item == 0


def column_major(array: Array) -> Array:
    """Lay a matrix in host memory out column by column; on other devices row by row, as products take it there."""
    if not isinstance(array, np.ndarray):
        return row_major(array)
    # One row alone lies by rows whatever it is a part of, or it would depend on what it was read with.
    return array if in_columns(array) and array.shape[0] > 1 else np.asfortranarray(array)


def laid_out(array: Array) -> Array:
    """A matrix in a layout that products take as it is: column by column where it is so, else row by row."""
    return array if in_columns(array) else row_major(array)


def operand(values: Array, precision: Precision) -> Array:
    """What `transposed_product` takes of rounded values: themselves, but on a GPU their upper 16 bits under bf16."""
    if precision != "bf16" or not array_api_compat.is_cupy_array(values):
        return values
    xp = namespace(values)
    return xp.astype(values.view(xp.uint32) >> 16, xp.uint16)


def transposed_product(a: Array, parts: Sequence[Array], precision: Precision) -> Array:
    """Product ``a' (parts[0] + parts[1] + ...)`` of one block of rows.

    Parameters
    ----------
    a : array of shape (n_rows, p)
        Columns of an `operand` in a layout that `laid_out` leaves alone.
    parts : sequence of arrays of shape (n_rows, q)
        Likewise. One that is `a` itself, the same memory, is multiplied by syrk: half the work.
    precision : Precision

    Returns
    -------
    array of shape (p, q)
        In float32, or float64 where the precision is that or the product small. It may be overwritten.
    """
    products = [_one_product(a, b, precision) for b in parts]
    return sum(products[1:], start=products[0])


def _one_product(a: Array, b: Array, precision: Precision) -> Array:
    if array_api_compat.is_cupy_array(a):
        return _cublas_product(a, b, precision)
    xp = namespace(a)
    if _is_small(a.shape[1], a.shape[0], b.shape[1]):
        wide = row_major(xp.astype(a, xp.float64))  # kernels for small matrices round with the layout
        return xp.matrix_transpose(wide) @ (wide if a is b else row_major(xp.astype(b, xp.float64)))
    return xp.matrix_transpose(a) @ b  # NumPy itself calls syrk where both are one


def plain_product(a: Array, b: Array) -> Array:
    """Product of two matrices of one type, in that type; a small one is taken in float64 and rounded once."""
    xp, kind = namespace(a), a.dtype
    if not _is_small(a.shape[0], a.shape[1], b.shape[1]):
        if a.shape[0] > 1:
            return a @ b
        # One row alone would be multiplied by gemv, which adds in another order where the matrix lies by columns.
        return (xp.concat([a, xp.zeros_like(a)]) @ b)[:1, :]
    a, b = (row_major(xp.astype(m, xp.float64)) for m in (a, b))
    return xp.astype(a @ b, kind)


def _is_small(p: int, n: int, q: int) -> bool:
    return p * n * q <= _SMALL_PRODUCT


def products_join(rows: Array, width: int) -> bool:
    """Whether a product of neighbouring tiles with neighbouring tiles has the bits of one for each pair: it is faster.

    OpenBLAS splits the additions along the rows by their number alone, but for its kernels for small matrices. Other
    libraries do not promise it; cuBLAS chooses an algorithm by the shape.

    Parameters
    ----------
    rows : array of shape (n_rows, n_features)
        What is multiplied.
    width : int
        Columns of a tile.
    """
    return isinstance(rows, np.ndarray) and _blas_is_open() and not _is_small(width, rows.shape[0], width)


@functools.cache
def _blas_is_open() -> bool:
    kinds = {library["internal_api"] for library in threadpool_info() if library["user_api"] == "blas"}
    return kinds == {"openblas"}


def bare_product(a: Array, precision: Precision) -> Callable[[], None]:
    """A call of the library's product of an `operand` with itself and no more: the speed that others are measured by.

    On a GPU one cuBLAS call into memory that is there; elsewhere the product as `transposed_product` takes it.
    """
    out = _cublas_result(a, a, precision) if array_api_compat.is_cupy_array(a) else None

    def multiply() -> None:
        if out is None:
            _one_product(a, a, precision)
        else:
            _cublas_call(a, a, out, precision)

    return multiply


def _cublas_product(a: Array, b: Array, precision: Precision) -> Array:
    """The product by cuBLAS, whose matrices lie column by column: to it, a matrix laid out by rows is transposed."""
    import cupy

    a, b = (m if m.strides[1] == m.itemsize else cupy.ascontiguousarray(m) for m in (a, b))
    out = _cublas_result(a, b, precision)
    if not a.shape[0]:
        out.fill(0)
        return out
    return cupy.triu(out) + cupy.triu(out, 1).T if _cublas_call(a, b, out, precision) else out


def _cublas_result(a: Array, b: Array, precision: Precision) -> Array:
    import cupy

    return cupy.empty((a.shape[1], b.shape[1]), dtype=np.float64 if precision == "float64" else np.float32)


def _cublas_call(a: Array, b: Array, out: Array, precision: Precision) -> bool:
    """Multiply into `out`; whether only its upper triangle was."""
    import cupy
    from cupy.cuda import device
    from cupy_backends.cuda.libs import cublas

    runtime = cupy.cuda.runtime
    (n, p), q, kind = a.shape, b.shape[1], np.float64 if precision == "float64" else np.float32
    rows_a, rows_b = a.strides[0] // a.itemsize, b.strides[0] // b.itemsize
    one, zero = np.ones(1, kind), np.zeros(1, kind)  # read by the call itself, in its host pointer mode
    handle = device.get_cublas_handle()
    same = a.data.ptr == b.data.ptr and a.shape == b.shape and a.strides == b.strides
    if same and precision in ("float32", "float64"):
        syrk = cublas.dsyrk if precision == "float64" else cublas.ssyrk
        # The lower triangle by columns is the upper one by rows.
        syrk(
            handle, cublas.CUBLAS_FILL_MODE_LOWER, cublas.CUBLAS_OP_N, p, n,
            one.ctypes.data, a.data.ptr, rows_a, zero.ctypes.data, out.data.ptr, p,
        )  # fmt: skip
        return True
    kinds = {
        "float32": (runtime.CUDA_R_32F, cublas.CUBLAS_COMPUTE_32F),
        "float64": (runtime.CUDA_R_64F, cublas.CUBLAS_COMPUTE_64F),
        "tf32": (runtime.CUDA_R_32F, cublas.CUBLAS_COMPUTE_32F_FAST_TF32),
        "bf16": (runtime.CUDA_R_16BF, cublas.CUBLAS_COMPUTE_32F),
    }
    given, compute = kinds[precision]
    result = runtime.CUDA_R_64F if precision == "float64" else runtime.CUDA_R_32F
    cublas.gemmEx(
        handle, cublas.CUBLAS_OP_N, cublas.CUBLAS_OP_T, q, p, n,
        one.ctypes.data, b.data.ptr, given, rows_b, a.data.ptr, given, rows_a,
        zero.ctypes.data, out.data.ptr, result, q, compute, cublas.CUBLAS_GEMM_DEFAULT,
    )  # fmt: skip
    return False


def cholesky_factor(system: Array) -> Array | None:
    """Lower Cholesky factor of a symmetric matrix (LAPACK or cuSOLVER potrf); None where it is not definite."""
    if isinstance(system, np.ndarray):
        try:
            return scipy.linalg.cholesky(system, lower=True, check_finite=False)
        except np.linalg.LinAlgError:
            return None
    xp = namespace(system)
    try:
        factor = xp.linalg.cholesky(system)
    except np.linalg.LinAlgError:  # array-api-strict computes with NumPy
        return None
    # CuPy raises nothing: a pivot that is not positive leaves NaN or itself behind.
    diagonal = xp.linalg.diagonal(factor)
    return factor if bool(xp.all(diagonal > 0) & xp.all(xp.isfinite(factor))) else None


def cholesky_solve(factor: Array, right: Array) -> Array:
    """Solve ``L L' x = right`` with the lower factor L."""
    if isinstance(factor, np.ndarray):
        return scipy.linalg.cho_solve((factor, True), right, check_finite=False)
    if array_api_compat.is_cupy_array(factor):
        from cupyx.scipy.linalg import solve_triangular

        half = solve_triangular(factor, right, lower=True)
        return solve_triangular(factor, half, lower=True, trans="T")
    xp = namespace(factor)  # the standard has no triangular solve; this path exists for conformance tests
    return xp.linalg.solve(xp.matrix_transpose(factor), xp.linalg.solve(factor, right))


def eigenvalues(symmetric: Array) -> np.ndarray:
    """Eigenvalues of a symmetric matrix in ascending order, on the host (LAPACK or cuSOLVER syevd)."""
    if isinstance(symmetric, np.ndarray):
        return np.asarray(scipy.linalg.eigvalsh(symmetric, check_finite=False))
    return to_host(namespace(symmetric).linalg.eigvalsh(symmetric))


def eigenpairs(symmetric: Array) -> tuple[Array, Array]:
    """Eigenvalues of a symmetric matrix, ascending, and its eigenvectors as columns (LAPACK or cuSOLVER syevd)."""
    if isinstance(symmetric, np.ndarray):
        values, vectors = scipy.linalg.eigh(symmetric, driver="evd", check_finite=False)
        return values, vectors
    values, vectors = namespace(symmetric).linalg.eigh(symmetric)
    return values, vectors


def r_factor(rows: Array) -> Array:
    """Triangle R of a QR decomposition (Householder, LAPACK or cuSOLVER), its diagonal not negative, zeros below.

    Parameters
    ----------
    rows : floating array of shape (n, p)

    Returns
    -------
    array of shape (p, p)
        Rows of zeros at its end where n < p.
    """
    xp, (n, p) = namespace(rows), rows.shape
    if isinstance(rows, np.ndarray):
        r = scipy.linalg.qr(rows, mode="r", check_finite=False)[0][:p]
    elif array_api_compat.is_cupy_array(rows):
        r = xp.linalg.qr(rows, mode="r")
    else:
        r = xp.linalg.qr(rows, mode="reduced").R
    if n < p:
        r = xp.concat([r, xp.zeros((p - n, p), dtype=rows.dtype, device=device_of(rows))])
    diagonal = xp.linalg.diagonal(r)
    signs = xp.where(diagonal < 0, -xp.ones_like(diagonal), xp.ones_like(diagonal))
    return xp.triu(r * signs[:, None]) + 0.0  # no -0.0, which has other bits than 0.0


def computed(function: Callable[..., Array], *operands: Array, out: Array) -> None:
    """Put what a function of the namespace gives where it belongs: the memory of a result costs as much as its numbers.

    Parameters
    ----------
    function : callable
        Such as `xp.exp`.
    operands : arrays
        Of the type of `out`.
    out : array
        It may be one of the operands, where each number comes of numbers in its place.
    """
    if isinstance(out, np.ndarray) or array_api_compat.is_cupy_array(out):
        function(*operands, out=out)
    else:
        out[...] = function(*operands)  # the standard has no such argument


def in_place(function: Callable[..., Array], array: Array) -> Array:
    """The array itself, each of its numbers turned into what a function of the namespace makes of it."""
    computed(function, array, out=array)
    return array


def rows_like(like: Array, n_columns: int, dtype: Any = None) -> Array:
    """Memory of as many rows, of its type or another: laid out by columns in host memory where those are, else by rows.

    Columns have a gap between them: a power of two from one to the next would keep them all in the same few places of
    the cache.
    """
    xp, n_rows, dtype = namespace(like), like.shape[0], like.dtype if dtype is None else dtype
    if not in_columns(like):
        return xp.empty((n_rows, n_columns), dtype=dtype, device=device_of(like))
    return np.empty((n_columns, n_rows + COLUMN_GAP // np.dtype(dtype).itemsize), dtype)[:, :n_rows].T


def may_overwrite(array: Array, dtype: Any) -> bool:
    """Whether results of a type can be put in an array's place, piece by piece."""
    if array.dtype != dtype:
        return False
    if isinstance(array, np.ndarray):
        return bool(array.flags.writeable and (array.flags.c_contiguous or in_columns(array)))
    return bool(array.flags.c_contiguous) if array_api_compat.is_cupy_array(array) else True


def class_sums(
    rows: Array, ids: Array, n_classes: int, *, of: Array | None = None, weights: Array | None = None
) -> tuple[Array | None, Array]:
    """Sum the rows of each class: the product `onehot(ids)' @ rows` without the one-hot matrix.

    Parameters
    ----------
    rows : array of shape (n_rows, n_features)
    ids : integer array of shape (n_rows,)
        Class of each row, in [0, n_classes).
    n_classes : int
    of : integer array, optional
        Row that each id belongs to, where a row has several or none; the i-th id to the i-th row without it.
    weights : floating array of the shape of `ids`, optional
        Factors of the rows in the sums.

    Returns
    -------
    present : integer array of shape (n_present,), or None
        The classes that occur, ascending; None stands for all of them.
    sums : array of shape (n_present, n_features) or (n_classes, n_features)
        In the rows' own type. O(n_rows * n_features) work on NumPy and CuPy.
    """
    xp = namespace(rows)
    values: Any
    if isinstance(rows, np.ndarray):
        values, csr_matrix = np, scipy.sparse.csr_matrix
    elif array_api_compat.is_cupy_array(rows):
        import cupy
        import cupyx.scipy.sparse

        values, csr_matrix = cupy, cupyx.scipy.sparse.csr_matrix
    else:
        # The standard has no segmented sum; this path exists for conformance tests, not for speed.
        classes = xp.arange(n_classes, dtype=ids.dtype, device=device_of(ids))
        onehot = xp.astype(classes[:, None] == ids[None, :], rows.dtype)
        taken = rows if of is None else xp.take(rows, of, axis=0)
        return None, onehot @ (taken if weights is None else taken * xp.astype(weights, rows.dtype)[:, None])
    order = values.argsort(ids, kind="stable")
    present, starts = values.unique(ids[order], return_index=True)
    indptr = values.concatenate([starts, values.asarray([len(ids)], dtype=starts.dtype)])
    factors = values.ones(len(ids), dtype=rows.dtype) if weights is None else weights[order].astype(rows.dtype)
    selector = csr_matrix((factors, order if of is None else of[order], indptr), shape=(len(present), len(rows)))
    return present, selector @ rows


def device_facts() -> dict[str, Any]:
    """The first GPU and the libraries it is used by.

    Raises
    ------
    ConfigError
        If there is none.
    """
    cupy = _cupy()
    from cupy.cuda import device
    from cupy_backends.cuda.libs import cublas

    runtime = cupy.cuda.runtime
    properties = runtime.getDeviceProperties(runtime.getDevice())
    free, total = runtime.memGetInfo()
    return {
        "name": properties["name"].decode(),
        "compute_capability": f"{properties['major']}.{properties['minor']}",
        "multiprocessors": int(properties["multiProcessorCount"]),
        "memory_bytes": int(total),
        "memory_free_bytes": int(free),
        "driver": int(runtime.driverGetVersion()),
        "runtime": int(runtime.runtimeGetVersion()),
        "cublas": int(cublas.getVersion(device.get_cublas_handle())),
        "cupy": str(cupy.__version__),
    }


def free_bytes(like: Array) -> int | None:
    """Free memory of an array's GPU, what CuPy's pool holds unused included; None where it is not a GPU's."""
    if not array_api_compat.is_cupy_array(like):
        return None
    import cupy

    free, _ = cupy.cuda.runtime.memGetInfo()
    return int(free) + int(cupy.get_default_memory_pool().free_bytes())


def finish(like: Array) -> None:
    """Wait until everything that was begun on the device of an array is done."""
    if array_api_compat.is_cupy_array(like):
        import cupy

        cupy.cuda.Device().synchronize()


class PinnedTransport:
    """Blocks of host arrays to the GPU through page-locked memory, on a stream of their own.

    Each slot is a piece of pinned memory, a piece of device memory, and two events: its copy is done, its use is done.
    The order of the calls is `streamfit.engine.feed`'s; nothing here waits unless told to.

    Parameters
    ----------
    n_slots : int

    Raises
    ------
    ConfigError
        If there is no CuPy, or no GPU.
    """

    def __init__(self, n_slots: int) -> None:
        cupy = self._cupy = _cupy()
        self._stream = cupy.cuda.Stream(non_blocking=True)
        self._copied = [cupy.cuda.Event(disable_timing=True) for _ in range(n_slots)]
        self._used = [cupy.cuda.Event(disable_timing=True) for _ in range(n_slots)]
        self._pinned = [np.empty(0, np.uint8) for _ in range(n_slots)]
        self._device: list[Array] = [None] * n_slots
        self._layout: list[list[tuple[int, int, tuple[int, ...], Any, bool] | None]] = [[] for _ in range(n_slots)]
        self._sizes = [0] * n_slots

    def wait_for_copy(self, slot: int) -> None:
        """Hold the host until the slot's pinned memory has been read."""
        self._copied[slot].synchronize()

    def stage(self, slot: int, arrays: Sequence[np.ndarray | None]) -> None:
        """Write arrays into the slot's pinned memory."""
        starts, size = [], 0
        turned = [array is not None and in_columns(array) for array in arrays]  # turned back where that is fast
        arrays = [array.T if array is not None and back else array for array, back in zip(arrays, turned, strict=True)]
        for array in arrays:
            starts.append(size)
            size += 0 if array is None else -(-array.nbytes // _ALIGNED) * _ALIGNED
        if size > len(self._pinned[slot]):
            import cupyx

            # Neither the old memory nor what the pool gives for it may be in use by a kernel or a copy.
            self._cupy.cuda.Device().synchronize()
            self._pinned[slot] = cupyx.empty_pinned((size,), np.uint8)
            with self._stream:
                self._device[slot] = self._cupy.empty(size, dtype=np.uint8)
        pairs = list(zip(arrays, starts, strict=True))
        self._layout[slot] = [
            None if a is None else (start, a.nbytes, a.shape, a.dtype, back)
            for (a, start), back in zip(pairs, turned, strict=True)
        ]
        self._sizes[slot] = size
        for array, start in pairs:
            if array is not None:
                place = self._pinned[slot][start : start + array.nbytes].view(array.dtype)
                np.copyto(place.reshape(array.shape), array)

    def wait_for_use(self, slot: int) -> None:
        """Hold the copying stream until the slot's device memory has been used."""
        self._stream.wait_event(self._used[slot])

    def copy(self, slot: int) -> None:
        """Begin to copy the slot to the device."""
        if self._sizes[slot]:
            pinned = ctypes.c_void_p(self._pinned[slot].ctypes.data)
            self._device[slot].data.copy_from_host_async(pinned, self._sizes[slot], self._stream)
        self._copied[slot].record(self._stream)

    def arrays(self, slot: int) -> list[Array | None]:
        """The slot's arrays on the device, which whatever is computed next will find copied."""
        self._cupy.cuda.get_current_stream().wait_event(self._copied[slot])
        held = self._device[slot]
        found: list[Array | None] = []
        for part in self._layout[slot]:
            if part is None:
                found.append(None)
                continue
            start, size, shape, kind, back = part
            array = held[start : start + size].view(kind).reshape(shape)
            found.append(row_major(array.T) if back else array)
        return found

    def used(self, slot: int) -> None:
        """Mark that all that uses the slot's device memory has been begun."""
        self._used[slot].record(self._cupy.cuda.get_current_stream())
