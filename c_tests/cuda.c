/* A program that would use a GPU, on any machine: without a driver, a device or a fitting one it is told so in a
 * status and in words, and the CPU goes on; with one the GPU gives the bits of the CPU. What only the emulated GPU
 * can show is in tests/cuda. */
#include "layers.h"

enum { ROWS = 64, COLUMNS = 512, BATCH = 9 };
#define WEIGHT "blk.0.q4_k.weight"

static float x[BATCH * COLUMNS], want[BATCH * ROWS], got[BATCH * ROWS];

/* Statuses that say why there is no GPU to use. */
static int is_absence(bl_status status) {
  return status == BL_ERROR_NO_DRIVER || status == BL_ERROR_DRIVER_TOO_OLD || status == BL_ERROR_NO_DEVICE ||
         status == BL_ERROR_UNSUPPORTED_DEVICE || status == BL_ERROR_DEVICE;
}

static void names(void) {
  CHECK(strcmp(bl_status_name(BL_ERROR_NO_DRIVER), "BL_ERROR_NO_DRIVER") == 0);
  CHECK(strcmp(bl_status_name(BL_ERROR_DRIVER_TOO_OLD), "BL_ERROR_DRIVER_TOO_OLD") == 0);
  CHECK(strcmp(bl_status_name(BL_ERROR_NO_DEVICE), "BL_ERROR_NO_DEVICE") == 0);
  CHECK(strcmp(bl_status_name(BL_ERROR_UNSUPPORTED_DEVICE), "BL_ERROR_UNSUPPORTED_DEVICE") == 0);
  CHECK(strcmp(bl_status_name(BL_ERROR_DEVICE_LOST), "BL_ERROR_DEVICE_LOST") == 0);
}

/* The list of devices begins with the CPU and has an end. */
static uint32_t devices(void) {
  uint32_t count = 0;
  for (;;) {
    STRUCT(bl_device_info, info);
    bl_status status = bl_device_describe(NULL, count, &info, &error);
    if (status != BL_OK) {
      CHECK(status == BL_ERROR_NOT_FOUND && error.message[0] != 0);
      break;
    }
    CHECK(info.kind == (count == 0 ? BL_DEVICE_CPU : BL_DEVICE_CUDA));
    CHECK(info.name != NULL && info.features != NULL && info.memory_total > 0 && info.compute_units > 0);
    CHECK(count == 0 || info.arch >= 10);
    count++;
  }
  CHECK(count >= 1);
  return count;
}

static void without(const bl_model *model, const bl_layer *cpu) {
  bl_layer *made = NULL;
  bl_status status, again;
  STRUCT(bl_layer_options, options);
  options.device = 1;
  status = bl_layer_open(model, WEIGHT, &options, &made, &error);
  CHECK(is_absence(status) && error.status == status && error.message[0] != 0 && made == NULL);
  again = bl_layer_copy(cpu, 1, NULL, NULL, &made, &error);
  CHECK(again == status && error.message[0] != 0 && made == NULL);
  status = bl_layer_create(NULL, 1, 64, x, BL_TYPE_F32, 0, &options, &made, &error);
  CHECK(again == status && error.message[0] != 0 && made == NULL);
  forward(cpu, BATCH, x, got); /* the CPU does not care */
  CHECK(same(got, want, BATCH * ROWS));
}

static void with(const bl_model *model, const bl_layer *cpu) {
  bl_layer *made = NULL, *back = NULL;
  STRUCT(bl_layer_options, options);
  options.device = 1;
  GOOD(bl_layer_open(model, WEIGHT, &options, &made, &error));
  CHECK(layer_info(made).device == 1 && plan_of(made, 1).threads == 0);
  memset(got, 0, sizeof got);
  forward(made, BATCH, x, got);
  CHECK(same(got, want, BATCH * ROWS));
  GOOD(bl_layer_copy(made, 0, NULL, NULL, &back, &error));
  bl_free(made);
  memset(got, 0, sizeof got);
  forward(back, BATCH, x, got);
  CHECK(same(got, want, BATCH * ROWS));
  bl_free(back);
  GOOD(bl_layer_copy(cpu, 1, NULL, NULL, &made, &error));
  bl_free(made);
}

int main(int count, char **words) {
  bl_model *model;
  bl_layer *cpu, *copy = NULL;
  STRUCT(bl_device_info, gpu);
  start(count, words);
  names();
  fill(x, BATCH * COLUMNS, 3);
  model = open_model(ALL_TYPES);
  cpu = open_layer(model, WEIGHT, BL_ACTIVATION_AUTO, NULL);
  forward(cpu, BATCH, x, want);
  if (devices() > 1 && bl_device_describe(NULL, 1, &gpu, &error) == BL_OK && gpu.arch >= 75)
    with(model, cpu);
  else
    without(model, cpu);
  GOOD(bl_layer_copy(cpu, 0, NULL, NULL, &copy, &error)); /* on the CPU */
  CHECK(layer_info(copy).device == 0);
  memset(got, 0, sizeof got);
  forward(copy, BATCH, x, got);
  CHECK(same(got, want, BATCH * ROWS));
  bl_free(copy), bl_free(cpu), bl_free(model);
  return done();
}
