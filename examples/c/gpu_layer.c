/* gpu_layer FILE LAYER: y = x W^T + b on the first GPU, with x and y in its memory and the work on a stream; on the CPU
 * where there is no GPU. Prints where it ran and y[0]. Needs no CUDA to be built: the few functions of the driver
 * that a program with a GPU has anyway are looked up here. */
#include <bitlinear.h>
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

typedef unsigned long long address;
static int (*init)(unsigned), (*retain)(void **, int), (*set_current)(void *), (*alloc)(address *, size_t);
static int (*to_device)(address, const void *, size_t, void *), (*to_host)(void *, address, size_t);
static int (*stream_create)(void **, unsigned), (*stream_wait)(void *);

static int find(void *library, void *function, const char *name) {
  return (*(void **)function = dlsym(library, name)) != NULL;
}
static int driver(void) {
  void *cuda = dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL);
  return cuda != NULL && find(cuda, &init, "cuInit") && find(cuda, &retain, "cuDevicePrimaryCtxRetain") &&
         find(cuda, &set_current, "cuCtxSetCurrent") && find(cuda, &alloc, "cuMemAlloc_v2") &&
         find(cuda, &to_device, "cuMemcpyHtoDAsync_v2") && find(cuda, &to_host, "cuMemcpyDtoH_v2") &&
         find(cuda, &stream_create, "cuStreamCreate") && find(cuda, &stream_wait, "cuStreamSynchronize");
}

static bl_error e;
static int failed(void) {
  fprintf(stderr, "%s: %s\n", bl_status_name(e.status), e.message);
  return 1;
}

int main(int count, char **words) {
  bl_device_info gpu = {.struct_size = sizeof gpu};
  bl_layer_options options = {.struct_size = sizeof options};
  bl_layer_info info = {.struct_size = sizeof info};
  bl_plan_info plan = {.struct_size = sizeof plan};
  bl_run_options run = {.struct_size = sizeof run};
  bl_model *model;
  bl_layer *layer;
  const bl_layer *layers[1];
  float *x, *y;
  int on_gpu;
  if (count < 3) return 2;
  on_gpu = bl_device_describe(NULL, 1, &gpu, &e) == BL_OK && gpu.arch >= 75 && driver();
  options.device = on_gpu ? 1 : 0;
  if (bl_load(NULL, words[1], NULL, &model, &e) != BL_OK) return failed();
  if (bl_layer_open(model, words[2], &options, &layer, &e) != BL_OK) return failed();
  if (bl_layer_describe(layer, &info, &e) != BL_OK) return failed();
  bl_free(model);
  x = (float *)calloc((size_t)info.in_features, sizeof *x);
  y = (float *)calloc((size_t)info.out_features, sizeof *y);
  if (x == NULL || y == NULL) return 1;
  x[0] = 1.0f;
  if (on_gpu) {
    size_t x_size = (size_t)info.in_features * sizeof *x, y_size = (size_t)info.out_features * sizeof *y;
    address x_there, y_there, space = 0;
    void *context, *stream, *ys[1];
    if (bl_plan(layer, BL_OP_FORWARD, 1, BL_TYPE_F32, &plan, &e) != BL_OK) return failed();
    /* What a host with a GPU does: the runtime's context, memory, a stream. x goes up on that stream: a copy on another one
     * may still be under way when the layer begins. */
    if (init(0) || retain(&context, 0) || set_current(context) || alloc(&x_there, x_size) || alloc(&y_there, y_size) ||
        alloc(&space, (size_t)plan.workspace_size + 1) || stream_create(&stream, 1) || to_device(x_there, x, x_size, stream))
      return 1;
    run.workspace = (void *)(size_t)space;
    run.workspace_size = (size_t)plan.workspace_size;
    layers[0] = layer;
    ys[0] = (void *)(size_t)y_there;
    if (bl_forward_device(layers, 1, 1, (void *)(size_t)x_there, BL_TYPE_F32, 0, ys, BL_TYPE_F32, NULL, &run, stream,
                          &e) != BL_OK)
      return failed();
    if (stream_wait(stream) || to_host(y, y_there, y_size)) return 1;
  } else if (bl_forward(layer, 1, x, BL_TYPE_F32, 0, y, BL_TYPE_F32, 0, NULL, &e) != BL_OK) {
    return failed();
  }
  printf("%s: y[0] = %g\n", on_gpu ? gpu.name : "CPU", y[0]);
  bl_free(layer);
  free(x);
  free(y);
  return 0;
}
