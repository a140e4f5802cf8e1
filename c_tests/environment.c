/* BITLINEAR_ISA narrows the instruction sets; a wrong value is a status. Variables of others do not matter. */
#include "layers.h"

enum { ROWS = 64, COLUMNS = 512 };

int main(int count, char **words) {
  static const char *const names[] = {"scalar", "avx2", "avx512vnni", "neon"};
  static float x[COLUMNS], want[ROWS], y[ROWS];
  bl_context *context = NULL;
  bl_layer *layer;
  size_t i;
  start(count, words);
  fill(x, COLUMNS, 15);
  setenv("BITLINEAR_ISA", "vector", 1);
  EXPECT(bl_context_create(NULL, &context, &error), BL_ERROR_INVALID_ARGUMENT, "`vector`");
  setenv("BITLINEAR_ISA", "\xff", 1);
  EXPECT(bl_context_create(NULL, &context, &error), BL_ERROR_INVALID_ARGUMENT, "BITLINEAR_ISA");
  setenv("BITLINEAR_ISA", "", 1); /* as if it were not set */
  GOOD(bl_context_create(NULL, &context, &error));
  bl_free(context);
  unsetenv("BITLINEAR_ISA");
  setenv("RUST_BACKTRACE", "full", 1);
  setenv("RAYON_NUM_THREADS", "7", 1);
  setenv("OMP_NUM_THREADS", "7", 1);
  layer = only_layer(ALL_TYPES, "blk.0.q4_k.weight");
  forward(layer, 1, x, want);
  CHECK(plan_of(layer, 1).threads == 1);
  bl_free(layer);
  for (i = 0; i < sizeof names / sizeof *names; i++) {
    bl_model *model = NULL;
    bl_status status;
    setenv("BITLINEAR_ISA", names[i], 1);
    status = bl_context_create(NULL, &context, &error);
    CHECK(status == BL_OK || strstr(error.message, names[i]) != NULL);
    CHECK(status == BL_OK || i > 0); /* scalar is everywhere */
    unsetenv("BITLINEAR_ISA"); /* read when the context was made */
    if (status != BL_OK) continue;
    GOOD(bl_load(context, golden(ALL_TYPES), NULL, &model, &error));
    layer = open_layer(model, "blk.0.q4_k.weight", BL_ACTIVATION_AUTO, NULL);
    if (i == 0) CHECK(strstr(plan_of(layer, 1).kernel, "scalar") != NULL);
    memset(y, 0, sizeof y);
    forward(layer, 1, x, y);
    CHECK(same(y, want, ROWS));
    bl_free(layer), bl_free(model), bl_free(context);
  }
  return done();
}
