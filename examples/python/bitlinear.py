"""Low-bit linear layers through libbitlinear, with ctypes and numpy. One file: copy it.

    layer = bitlinear.Model("model.gguf").layer("blk.0.ffn_up")
    y = layer(x)                                  # x [m, in_features], float32 or float16

A layer's name gives its weights with scale and bias; a tensor's name, "blk.0.ffn_up.weight", the matrix alone.

The library is found by BITLINEAR_LIBRARY (a path) or by its name. Handles are freed with their objects,
in any order. ctypes releases the interpreter's lock during calls, so that threads run side by side.
"""
import ctypes
import os

import numpy as np

VERSION = (0, 1)  # of the header that the structs below follow
BL_OP_FORWARD = 0
BL_THREADS_ALL = 0xFFFFFFFF
_TYPES = {np.dtype(np.float32): 1, np.dtype(np.float16): 2}


class Error(Exception):
    """A failure: its status name and its text."""

    def __init__(self, status, text):
        self.status = _library.bl_status_name(status).decode()
        super().__init__(f"{self.status}: {text}")


class _Error(ctypes.Structure):
    _fields_ = [("status", ctypes.c_int), ("message", ctypes.c_char * 252)]


class _Sized(ctypes.Structure):
    """A struct that begins with struct_size, all defaults. What it lacks at its end is default too."""

    def __init__(self, **fields):
        super().__init__(struct_size=ctypes.sizeof(type(self)), **fields)


class _ContextOptions(_Sized):
    _fields_ = [("struct_size", ctypes.c_uint32), ("threads", ctypes.c_uint32)]


class _LoadOptions(_Sized):
    _fields_ = [("struct_size", ctypes.c_uint32), ("flags", ctypes.c_uint32)]


class _LayerOptions(_Sized):
    _fields_ = [
        ("struct_size", ctypes.c_uint32),
        ("type", ctypes.c_uint32),
        ("activation", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("bias", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("scale_count", ctypes.c_int64),
        ("group_size", ctypes.c_int64),
        ("slice", ctypes.c_int64),
        ("in_features", ctypes.c_int64),
        ("out_features", ctypes.c_int64),
        ("norm", ctypes.c_uint32),
        ("norm_epsilon", ctypes.c_float),
        ("norm_weight", ctypes.c_void_p),
        ("norm_bias", ctypes.c_void_p),
        ("rotation_block", ctypes.c_uint32),
        ("epilogue", ctypes.c_uint32),
        ("rotation_signs", ctypes.c_void_p),
        ("epilogue_threshold", ctypes.c_float),
        ("activation_scale", ctypes.c_float),
        ("shard", ctypes.c_uint32),
        ("shard_rank", ctypes.c_uint32),
        ("shard_count", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
        ("device", ctypes.c_uint32),
        ("device_flags", ctypes.c_uint32),
    ]


class _LayerInfo(_Sized):
    _fields_ = [
        ("struct_size", ctypes.c_uint32),
        ("type", ctypes.c_uint32),
        ("in_features", ctypes.c_int64),
        ("out_features", ctypes.c_int64),
    ]


class _DeviceInfo(_Sized):
    _fields_ = [
        ("struct_size", ctypes.c_uint32),
        ("kind", ctypes.c_uint32),
        ("memory_total", ctypes.c_uint64),
        ("memory_free", ctypes.c_uint64),
        ("compute_units", ctypes.c_uint32),
        ("arch", ctypes.c_uint32),
        ("name", ctypes.c_char_p),
    ]


class _TensorInfo(_Sized):
    _fields_ = [
        ("struct_size", ctypes.c_uint32),
        ("type", ctypes.c_uint32),
        ("name", ctypes.c_char_p),
        ("dims", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
        ("shape", ctypes.c_int64 * 4),
    ]


class _ModelLayerInfo(_Sized):
    _fields_ = [
        ("struct_size", ctypes.c_uint32),
        ("type", ctypes.c_uint32),
        ("name", ctypes.c_char_p),
        ("in_features", ctypes.c_int64),
        ("out_features", ctypes.c_int64),
    ]


class _ModelInfo(_Sized):
    _fields_ = [
        ("struct_size", ctypes.c_uint32),
        ("container", ctypes.c_uint32),
        ("tensors", ctypes.c_int64),
        ("metadata", ctypes.c_int64),
        ("bytes", ctypes.c_uint64),
        ("layers", ctypes.c_int64),
    ]


class _PlanInfo(_Sized):
    _fields_ = [
        ("struct_size", ctypes.c_uint32),
        ("threads", ctypes.c_uint32),
        ("kernel", ctypes.c_char_p),
    ]


def _open():
    library = ctypes.CDLL(os.environ.get("BITLINEAR_LIBRARY", "libbitlinear.so.0"))
    pointer, i64, u32, size = ctypes.c_void_p, ctypes.c_int64, ctypes.c_uint32, ctypes.c_size_t
    for name, arguments in {
        "bl_context_create": [pointer, pointer, pointer],
        "bl_load": [pointer, ctypes.c_char_p, pointer, pointer, pointer],
        "bl_load_memory": [pointer, pointer, size, pointer, pointer, pointer],
        "bl_model_describe": [pointer, pointer, pointer],
        "bl_model_tensor": [pointer, ctypes.c_char_p, i64, pointer, pointer],
        "bl_model_layer": [pointer, ctypes.c_char_p, i64, pointer, pointer],
        "bl_device_describe": [pointer, u32, pointer, pointer],
        "bl_layer_copy": [pointer, u32, pointer, pointer, pointer, pointer],
        "bl_layer_open": [pointer, ctypes.c_char_p, pointer, pointer, pointer],
        "bl_layer_describe": [pointer, pointer, pointer],
        "bl_layer_read": [pointer, i64, i64, pointer, u32, i64, pointer],
        "bl_plan": [pointer, u32, i64, u32, pointer, pointer],
        "bl_forward": [pointer, i64, pointer, u32, i64, pointer, u32, i64, pointer, pointer],
    }.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, ctypes.c_int
    library.bl_free.argtypes, library.bl_free.restype = [pointer], None
    library.bl_version.restype = u32
    library.bl_status_name.argtypes, library.bl_status_name.restype = [ctypes.c_int], ctypes.c_char_p
    found = library.bl_version()
    if (found // 1000000, found // 1000 % 1000) != VERSION:
        raise ImportError(f"libbitlinear {found} does not fit this module, which is for {VERSION}")
    return library


_library = _open()


def _call(name, *arguments):
    error = _Error()
    status = getattr(_library, name)(*arguments, ctypes.byref(error))
    if status:
        raise Error(status, error.message.decode())


def _text(text):
    """Bytes for C, which would take a NUL for the end."""
    text = os.fsencode(text)
    if b"\0" in text:
        raise ValueError(f"{text!r} holds a NUL")
    return text


def _described(kind, name, *arguments):
    info = kind()
    _call(name, *arguments, ctypes.byref(info))
    return info


def devices():
    """Names of the devices: 0 is the CPU, the others are GPUs."""
    names = []
    while True:
        try:
            info = _DeviceInfo()
            _call("bl_device_describe", None, len(names), ctypes.byref(info))
        except Error as error:
            if error.status != "BL_ERROR_NOT_FOUND":
                raise
            return names
        names.append(info.name.decode())


class _Handle:
    """Owns one handle. `free` may be called early, and more than once."""

    _raw = None
    _library_free = _library.bl_free  # still there while the interpreter shuts down

    def free(self):
        raw, self._raw = self._raw, None
        if raw is not None:
            self._library_free(raw)

    __del__ = free

    def _make(self, name, *arguments):
        raw = ctypes.c_void_p()
        _call(name, *arguments, ctypes.byref(raw))
        self._raw = raw.value


class Context(_Handle):
    """Threads, BL_THREADS_ALL for as many as there are processors. Without one calls run in the thread that makes them."""

    def __init__(self, threads=1):
        if not 0 <= threads <= BL_THREADS_ALL:  # ctypes would wrap it
            raise ValueError(f"{threads} threads")
        options = _ContextOptions(threads=threads)
        self._make("bl_context_create", ctypes.byref(options))


class Model(_Handle):
    """A GGUF or safetensors file, by its path or from bytes (which are copied)."""

    def __init__(self, source, context=None):
        raw = None
        if context is not None:
            raw = context._raw
            if raw is None:  # NULL would be the default context
                raise ValueError("the context was freed")
        if isinstance(source, (bytes, bytearray, memoryview)):
            source = bytes(source)
            self._make("bl_load_memory", raw, source, len(source), None)
        else:
            self._make("bl_load", raw, _text(source), None)

    def tensors(self):
        """Name and shape of each tensor."""
        count = _described(_ModelInfo, "bl_model_describe", self._raw).tensors
        infos = [_described(_TensorInfo, "bl_model_tensor", self._raw, None, i) for i in range(count)]
        return {os.fsdecode(info.name): tuple(info.shape[: info.dims]) for info in infos}

    def layers(self):
        """Name and shape, [out_features, in_features], of each layer."""
        count = _described(_ModelInfo, "bl_model_describe", self._raw).layers
        infos = [_described(_ModelLayerInfo, "bl_model_layer", self._raw, None, i) for i in range(count)]
        return {os.fsdecode(info.name): (info.out_features, info.in_features) for info in infos}

    def layer(self, name, bias=None, activation=0, device=0):
        return Layer(self, name, bias, activation, device)


class Layer(_Handle):
    """y = x W^T + b. Needs its model no longer. A bias, float32 [out_features], is taken in place of the file's."""

    def __init__(self, model, name, bias=None, activation=0, device=0):
        for number in (activation, device):
            if not 0 <= number < 1 << 32:  # ctypes would wrap it
                raise ValueError(f"activation {activation}, device {device}")
        options = _LayerOptions(activation=activation, device=device)
        if bias is not None:
            # C cannot see how long it is: the layer itself is asked first.
            plain = Layer(model, name, None, activation, device)
            count = plain.out_features
            plain.free()
            bias = np.asarray(bias, dtype=np.float32)
            if bias.shape != (count,):
                raise ValueError(f"bias {bias.shape} for out_features {count}")
            # A BitNet file's own bias tells which of its last 3 rows are padding. Without it none are.
            bias = np.concatenate([bias, np.zeros(3, np.float32)])
            options.bias = bias.ctypes.data
        self._make("bl_layer_open", model._raw, _text(name), ctypes.byref(options))
        self._look()
        if bias is not None and self.out_features != count:
            self.free()
            raise ValueError(f"bias of {count} values for out_features {self.out_features}")

    def _look(self):
        info = _described(_LayerInfo, "bl_layer_describe", self._raw)
        self.in_features, self.out_features = info.in_features, info.out_features

    def copy(self, device):
        """The same layer on a device; 0 is the CPU."""
        if not 0 <= device < 1 << 32:  # ctypes would wrap it
            raise ValueError(f"device {device}")
        other = Layer.__new__(Layer)
        other._make("bl_layer_copy", self._raw, device, None, None)
        other._look()
        return other

    def kernel(self, m=1):
        return _described(_PlanInfo, "bl_plan", self._raw, BL_OP_FORWARD, m, 1).kernel.decode()

    def weights(self):
        """The dequantised weights [out_features, in_features]."""
        w = np.empty((self.out_features, self.in_features), np.float32)
        _call("bl_layer_read", self._raw, 0, self.out_features, w.ctypes.data, 1, 0)
        return w

    def __call__(self, x, out=None):
        """y [m, out_features] of x [m, in_features]; y [out_features] of x [in_features].

        `out` is where y goes: [m, out_features], float32 or float16, contiguous, and no part of x.
        """
        x = np.asarray(x)
        if x.dtype not in _TYPES:
            x = x.astype(np.float32)
        rows = x if x.ndim == 2 else x.reshape(-1, x.shape[-1] if x.ndim else 1)
        if rows.shape[1] != self.in_features:
            raise ValueError(f"x {x.shape} for in_features {self.in_features}")
        # Rows may lie any distance apart, their elements not.
        if rows.strides[1] != rows.itemsize or rows.strides[0] < rows.shape[1] * rows.itemsize:
            rows = np.ascontiguousarray(rows)
        m = rows.shape[0]
        y = np.empty((m, self.out_features), np.float32) if out is None else out
        if y.shape != (m, self.out_features) or y.dtype not in _TYPES or not y.flags.c_contiguous:
            raise ValueError(f"out {y.shape} {y.dtype} for {(m, self.out_features)}")
        if not y.flags.writeable:  # C would write all the same, or crash
            raise ValueError("out is read-only")
        x_stride = rows.strides[0] if m > 1 else 0
        _call(
            "bl_forward",
            self._raw,
            m,
            rows.ctypes.data,
            _TYPES[rows.dtype],
            x_stride,
            y.ctypes.data,
            _TYPES[y.dtype],
            0,
            None,
        )
        return y.reshape(*x.shape[:-1], self.out_features)
