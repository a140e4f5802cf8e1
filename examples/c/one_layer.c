/* one_layer FILE LAYER: y = x W^T + b for one layer of a GGUF or safetensors file, x all ones. */
#include <bitlinear.h>
#include <stdio.h>
#include <stdlib.h>

static bl_error error;

static void check(bl_status status, const char *what) {
  if (status == BL_OK) return;
  fprintf(stderr, "%s: %s (%s)\n", what, error.message, bl_status_name(status));
  exit(1);
}

int main(int count, char **words) {
  bl_model *model;
  bl_layer *layer;
  bl_layer_info info = {.struct_size = sizeof info};
  bl_plan_info plan = {.struct_size = sizeof plan};
  if (count != 3) return fputs("usage: one_layer FILE LAYER\n", stderr), 2;

  check(bl_load(NULL, words[1], NULL, &model, &error), words[1]);
  check(bl_layer_open(model, words[2], NULL, &layer, &error), words[2]);
  check(bl_layer_describe(layer, &info, &error), "bl_layer_describe");
  check(bl_plan(layer, BL_OP_FORWARD, 1, BL_TYPE_F32, &plan, &error), "bl_plan");

  float *x = calloc((size_t)info.in_features, sizeof *x);
  float *y = calloc((size_t)info.out_features, sizeof *y);
  check(x && y ? BL_OK : BL_ERROR_OUT_OF_MEMORY, "calloc");
  for (int64_t k = 0; k < info.in_features; k++) x[k] = 1;
  check(bl_forward(layer, 1, x, BL_TYPE_F32, 0, y, BL_TYPE_F32, 0, NULL, &error), "bl_forward");

  printf("%ld x %ld, %s\ny =", (long)info.out_features, (long)info.in_features, plan.kernel);
  for (int64_t o = 0; o < 8 && o < info.out_features; o++) printf(" %g", (double)y[o]);
  printf("\n");
  free(x);
  free(y);
  bl_free(layer);
  bl_free(model);
  return 0;
}
