package bitlinear

import (
	"errors"
	"os"
	"runtime"
	"sync"
	"testing"
)

const (
	name   = "blk.0.q4_k"
	weight = name + ".weight"
)

// BITLINEAR_MODEL is a file with the layer above.
func open(t *testing.T, context *Context) *Layer {
	t.Helper()
	path := os.Getenv("BITLINEAR_MODEL")
	if path == "" {
		t.Skip("BITLINEAR_MODEL is not set")
	}
	model, err := Load(context, path)
	if err != nil {
		t.Fatal(err)
	}
	layer, err := model.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	return layer // the model is left to the collector: a layer needs it no longer
}

func ones(n int) []float32 {
	x := make([]float32, n)
	for i := range x {
		x[i] = 1
	}
	return x
}

func TestForward(t *testing.T) {
	layer := open(t, nil)
	defer layer.Free()
	y := make([]float32, layer.Out)
	if err := layer.Forward(ones(layer.In), y); err != nil {
		t.Fatal(err)
	}
	many := make([]float32, 3*layer.Out)
	if err := layer.Forward(ones(3*layer.In), many); err != nil {
		t.Fatal(err)
	}
	sum := float32(0)
	for i, v := range many {
		if v != y[i%layer.Out] {
			t.Fatalf("row %d differs from the same row alone", i/layer.Out)
		}
		sum += v * v
	}
	if sum == 0 {
		t.Fatal("y is all zeros")
	}
	if kernel, err := layer.Kernel(1); err != nil || kernel == "" {
		t.Fatal(kernel, err)
	}
}

func TestCopy(t *testing.T) {
	layer := open(t, nil)
	defer layer.Free()
	other, err := layer.Copy(0)
	if err != nil || other.In != layer.In || other.Out != layer.Out {
		t.Fatal(other, err)
	}
	defer other.Free()
	want, got := make([]float32, layer.Out), make([]float32, layer.Out)
	if err := layer.Forward(ones(layer.In), want); err != nil {
		t.Fatal(err)
	}
	if err := other.Forward(ones(layer.In), got); err != nil {
		t.Fatal(err)
	}
	for i := range want {
		if want[i] != got[i] {
			t.Fatalf("y[%d] differs in a copy", i)
		}
	}
	if _, err := layer.Copy(1000); err == nil {
		t.Fatal("a copy to no device")
	}
}

func TestTensors(t *testing.T) {
	path := os.Getenv("BITLINEAR_MODEL")
	if path == "" {
		t.Skip("BITLINEAR_MODEL names no file")
	}
	model, err := Load(nil, path)
	if err != nil {
		t.Fatal(err)
	}
	names, err := model.Tensors()
	if err != nil || len(names) < 10 {
		t.Fatal(names, err)
	}
	for _, found := range names {
		if found == weight {
			return
		}
	}
	t.Fatal(names)
}

// Goroutines move between OS threads: each must get its own error, and the same bits.
func TestGoroutines(t *testing.T) {
	context, err := NewContext(2)
	if err != nil {
		t.Fatal(err)
	}
	layer := open(t, context)
	context.Free() // the layer keeps what it needs
	want := make([]float32, layer.Out)
	if err := layer.Forward(ones(layer.In), want); err != nil {
		t.Fatal(err)
	}
	var group sync.WaitGroup
	for i := 0; i < 16; i++ {
		group.Add(1)
		go func() {
			defer group.Done()
			x, y := ones(layer.In), make([]float32, layer.Out)
			for round := 0; round < 50; round++ {
				if err := layer.Forward(x, y); err != nil {
					t.Error(err)
				}
				for i := range y {
					if y[i] != want[i] {
						t.Error("other bits")
						return
					}
				}
				if layer.Forward(x[1:], y) == nil {
					t.Error("a short x was taken")
				}
			}
		}()
	}
	group.Wait()
}

func TestErrors(t *testing.T) {
	_, err := Load(nil, "/nowhere/model.gguf")
	var failure *Error
	if !errors.As(err, &failure) || failure.Status != 7 || failure.Message == "" {
		t.Fatal(err)
	}
	if err.Error()[:12] != "BL_ERROR_IO:" {
		t.Fatal(err)
	}
	layer := open(t, nil)
	layer.Free()
	layer.Free()
	if err := layer.Forward(ones(layer.In), make([]float32, layer.Out)); err == nil {
		t.Fatal("a freed layer was used")
	}
	if !Compatible() || Version() == 0 {
		t.Fatal(Version())
	}
}

// Handles that nobody frees are freed by the collector, in whatever order it likes.
func TestFinalizers(t *testing.T) {
	for i := 0; i < 50; i++ {
		context, err := NewContext(1)
		if err != nil {
			t.Fatal(err)
		}
		layer := open(t, context)
		if err := layer.Forward(ones(layer.In), make([]float32, layer.Out)); err != nil {
			t.Fatal(err)
		}
		if i%10 == 0 {
			runtime.GC()
		}
	}
	runtime.GC()
	runtime.GC()
}
