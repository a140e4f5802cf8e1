// Package bitlinear runs low-bit linear layers through libbitlinear.
//
// Handles are freed by Free or, where that is forgotten, by the garbage collector, in any order. Every
// method may be called from any number of goroutines at a time, but for Free.
package bitlinear

/*
#cgo pkg-config: bitlinear
#include <bitlinear.h>
#include <stdlib.h>
*/
import "C"

import (
	"fmt"
	"runtime"
	"strings"
	"sync/atomic"
	"unsafe"
)

// Error is a status of the library with its text.
type Error struct {
	Status  int
	Message string
}

func (e *Error) Error() string {
	name := C.GoString(C.bl_status_name(C.bl_status(e.Status)))
	return fmt.Sprintf("%s: %s", name, e.Message)
}

// The error struct is the caller's own, so that no call depends on the OS thread it happens to run on.
func failure(status C.bl_status, why *C.bl_error) error {
	if status == C.BL_OK {
		return nil
	}
	return &Error{int(status), C.GoString(&why.message[0])}
}

// Version is that of the library that was loaded: major*1000000 + minor*1000 + patch.
func Version() uint32 { return uint32(C.bl_version()) }

// Compatible tells whether the loaded library fits the header this package was built with.
func Compatible() bool {
	return C.bl_version()/1000 == C.BL_VERSION/1000
}

// A handle frees once, whoever comes first: Free or the collector.
type handle struct{ raw unsafe.Pointer }

func (h *handle) pointer() unsafe.Pointer { return atomic.LoadPointer(&h.raw) }

// Free gives the handle back. A second call does nothing; other calls then fail.
func (h *handle) Free() { C.bl_free(atomic.SwapPointer(&h.raw, nil)) }

// Context is threads and settings. Where one is asked for, nil is the default: serial and silent.
type Context struct{ handle }

// NewContext makes a context of that many threads.
func NewContext(threads uint32) (*Context, error) {
	options := C.bl_context_options{threads: C.uint32_t(threads)}
	options.struct_size = C.uint32_t(unsafe.Sizeof(options))
	var raw *C.bl_context
	var why C.bl_error
	if err := failure(C.bl_context_create(&options, &raw, &why), &why); err != nil {
		return nil, err
	}
	context := &Context{handle{unsafe.Pointer(raw)}}
	runtime.SetFinalizer(context, func(c *Context) { c.Free() })
	return context, nil
}

func (c *Context) c() *C.bl_context {
	if c == nil {
		return nil
	}
	return (*C.bl_context)(c.pointer())
}

// text is a string for C, which would take a NUL for the end. The caller frees it.
func text(s string) (*C.char, error) {
	if strings.IndexByte(s, 0) >= 0 {
		return nil, &Error{int(C.BL_ERROR_INVALID_ARGUMENT), fmt.Sprintf("%q holds a NUL", s)}
	}
	return C.CString(s), nil
}

// Model is an opened file.
type Model struct{ handle }

// Load opens a GGUF or safetensors file. It is mapped, and must not be cut meanwhile.
func Load(context *Context, path string) (*Model, error) {
	if context != nil && context.pointer() == nil { // NULL would be the default context
		return nil, &Error{int(C.BL_ERROR_INVALID_HANDLE), "the context was freed"}
	}
	name, err := text(path)
	if err != nil {
		return nil, err
	}
	defer C.free(unsafe.Pointer(name))
	var raw *C.bl_model
	var why C.bl_error
	err = failure(C.bl_load(context.c(), name, nil, &raw, &why), &why)
	runtime.KeepAlive(context)
	if err != nil {
		return nil, err
	}
	model := &Model{handle{unsafe.Pointer(raw)}}
	runtime.SetFinalizer(model, func(m *Model) { m.Free() })
	return model, nil
}

// Tensors are the names of a model's tensors.
func (m *Model) Tensors() ([]string, error) {
	defer runtime.KeepAlive(m)
	var about C.bl_model_info
	about.struct_size = C.uint32_t(unsafe.Sizeof(about))
	var why C.bl_error
	raw := (*C.bl_model)(m.pointer())
	if err := failure(C.bl_model_describe(raw, &about, &why), &why); err != nil {
		return nil, err
	}
	names := make([]string, 0, int(about.tensors))
	for i := C.int64_t(0); i < about.tensors; i++ {
		var tensor C.bl_tensor_info
		tensor.struct_size = C.uint32_t(unsafe.Sizeof(tensor))
		if err := failure(C.bl_model_tensor(raw, nil, i, &tensor, &why), &why); err != nil {
			return nil, err
		}
		names = append(names, C.GoString(tensor.name))
	}
	return names, nil
}

// Layer is y = x Wᵀ + b.
type Layer struct {
	handle
	// In and Out are the lengths of a row of x and of y.
	In, Out int
}

// Open makes a layer by its name, "blk.0.attn_q", with scale and bias; by a tensor's name,
// "blk.0.attn_q.weight", of the matrix alone. The model may be freed before the layer.
func (m *Model) Open(name string) (*Layer, error) {
	defer runtime.KeepAlive(m)
	cName, err := text(name)
	if err != nil {
		return nil, err
	}
	defer C.free(unsafe.Pointer(cName))
	var raw *C.bl_layer
	var why C.bl_error
	if err := failure(C.bl_layer_open((*C.bl_model)(m.pointer()), cName, nil, &raw, &why), &why); err != nil {
		return nil, err
	}
	return adopt(raw)
}

// Copy is the same layer on a device, as bl_device_describe counts; 0 is the CPU.
func (l *Layer) Copy(device uint32) (*Layer, error) {
	defer runtime.KeepAlive(l)
	var raw *C.bl_layer
	var why C.bl_error
	status := C.bl_layer_copy((*C.bl_layer)(l.pointer()), C.uint32_t(device), nil, nil, &raw, &why)
	if err := failure(status, &why); err != nil {
		return nil, err
	}
	return adopt(raw)
}

// adopt owns a layer that C made.
func adopt(raw *C.bl_layer) (*Layer, error) {
	var why C.bl_error
	layer := &Layer{handle: handle{unsafe.Pointer(raw)}}
	runtime.SetFinalizer(layer, func(l *Layer) { l.Free() })
	var info C.bl_layer_info
	info.struct_size = C.uint32_t(unsafe.Sizeof(info))
	if err := failure(C.bl_layer_describe(raw, &info, &why), &why); err != nil {
		return nil, err
	}
	layer.In, layer.Out = int(info.in_features), int(info.out_features)
	runtime.KeepAlive(layer)
	return layer, nil
}

// Kernel is the name of what runs m rows.
func (l *Layer) Kernel(m int) (string, error) {
	defer runtime.KeepAlive(l)
	var plan C.bl_plan_info
	plan.struct_size = C.uint32_t(unsafe.Sizeof(plan))
	var why C.bl_error
	status := C.bl_plan((*C.bl_layer)(l.pointer()), C.BL_OP_FORWARD, C.int64_t(m), C.BL_TYPE_F32, &plan, &why)
	if err := failure(status, &why); err != nil {
		return "", err
	}
	return C.GoString(plan.kernel), nil
}

// Forward computes rows of y from rows of x; both are whole rows, one after another. The slices are
// arguments of the C call, not fields of a struct: so Go pins them, and nothing is copied.
func (l *Layer) Forward(x, y []float32) error {
	defer runtime.KeepAlive(l)
	if l.In == 0 || len(x)%l.In != 0 || len(y) != len(x)/l.In*l.Out {
		return &Error{int(C.BL_ERROR_INVALID_ARGUMENT),
			fmt.Sprintf("x has %d values and y %d; a row of x has %d, one of y %d", len(x), len(y), l.In, l.Out)}
	}
	if len(x) == 0 {
		return nil
	}
	var why C.bl_error
	status := C.bl_forward((*C.bl_layer)(l.pointer()), C.int64_t(len(x)/l.In),
		unsafe.Pointer(&x[0]), C.BL_TYPE_F32, 0, unsafe.Pointer(&y[0]), C.BL_TYPE_F32, 0, nil, &why)
	return failure(status, &why)
}
