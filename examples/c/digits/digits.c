/* Trains a small network with ternary weights, saves it, loads it and runs it: the low-bit runtime of
 * bitlinear from end to end. Handwritten digits, 8 x 8 pixels of 0 to 16, one in five held back.
 *
 *   digits DIGITS.BIN [MODEL.BL [CURVE.SVG]]
 *
 * A network is 64 - 256 - 256 - 10 with ReLUs. Its weights are learnt as floats (the masters) by Adam. In
 * every step bl_layer_update rounds them to -1, 0 and 1 with one scale a matrix, bl_forward computes with
 * those and with activations of 8 bits, and bl_layer_backward hands gradients straight through the rounding
 * to the masters. The same program with float layers is the baseline. */
#include <bitlinear.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PIXELS = 64, HIDDEN = 256, CLASSES = 10, LAYERS = 3, DIGITS = 1797, BATCH = 48, EPOCHS = 30 };

static const int64_t SIZES[LAYERS + 1] = {PIXELS, HIDDEN, HIDDEN, CLASSES};
static const char *const NAMES[LAYERS] = {"hidden.0", "hidden.1", "classes"};

static void need(bl_status status, const bl_error *error) {
  if (status == BL_OK) return;
  fprintf(stderr, "digits: %s: %s\n", bl_status_name(status), error->message);
  exit(1);
}

static float *floats(size_t count) {
  float *values = calloc(count, sizeof *values);
  if (values == NULL) fputs("digits: no memory\n", stderr), exit(1);
  return values;
}

/* ---- data ---- */

typedef struct {
  int count;
  float *x; /* [count, PIXELS], 0 to 1 */
  unsigned char *labels;
} set;

static set new_set(void) {
  set s = {0, floats((size_t)DIGITS * PIXELS), calloc(DIGITS, 1)};
  if (s.labels == NULL) fputs("digits: no memory\n", stderr), exit(1);
  return s;
}

/* Every fifth digit is for testing. */
static void read_digits(const char *path, set *train, set *test) {
  FILE *file = fopen(path, "rb");
  unsigned char one[1 + PIXELS];
  int i, k;
  if (file == NULL) fprintf(stderr, "digits: cannot open %s\n", path), exit(1);
  *train = new_set(), *test = new_set();
  for (i = 0; fread(one, sizeof one, 1, file) == 1 && i < DIGITS; i++) {
    set *s = i % 5 == 0 ? test : train;
    s->labels[s->count] = one[0];
    for (k = 0; k < PIXELS; k++) s->x[s->count * PIXELS + k] = (float)one[1 + k] / 16.0f;
    s->count++;
  }
  fclose(file);
  if (i != DIGITS) fprintf(stderr, "digits: %s has %d digits, %d expected\n", path, i, DIGITS), exit(1);
}

/* ---- a network ---- */

typedef struct {
  float *w[LAYERS], *gradient[LAYERS], *mean[LAYERS], *square[LAYERS]; /* masters, and Adam's moments */
  bl_layer *layers[LAYERS];
  float *y[LAYERS]; /* outputs of a batch, [BATCH or more, SIZES[l + 1]] */
  float *dy[LAYERS];
  int steps;
} network;

static size_t weights_of(int l) { return (size_t)(SIZES[l] * SIZES[l + 1]); }

static uint32_t random_state = 20250707;
static uint32_t random_bits(void) {
  random_state ^= random_state << 13, random_state ^= random_state >> 17, random_state ^= random_state << 5;
  return random_state;
}

static network new_network(bl_type type) {
  network n;
  bl_error error;
  int l;
  memset(&n, 0, sizeof n);
  for (l = 0; l < LAYERS; l++) {
    size_t i, count = weights_of(l);
    bl_layer_options options;
    n.w[l] = floats(count), n.gradient[l] = floats(count), n.mean[l] = floats(count), n.square[l] = floats(count);
    n.y[l] = floats((size_t)(DIGITS * SIZES[l + 1])), n.dy[l] = floats((size_t)(BATCH * SIZES[l + 1]));
    for (i = 0; i < count; i++) /* uniform, of variance 2 / inputs */
      n.w[l][i] = ((float)(random_bits() >> 8) / 8388608.0f - 1.0f) * sqrtf(6.0f / (float)SIZES[l]);
    memset(&options, 0, sizeof options);
    options.struct_size = sizeof options;
    options.type = type;
    options.activation = type == BL_TYPE_F32 ? BL_ACTIVATION_F32 : BL_ACTIVATION_INT8_ROW;
    options.epilogue = l < LAYERS - 1 ? BL_EPILOGUE_RELU : BL_EPILOGUE_NONE;
    need(bl_layer_create(NULL, SIZES[l + 1], SIZES[l], n.w[l], BL_TYPE_F32, 0, &options, &n.layers[l], &error),
         &error);
  }
  return n;
}

static void free_network(network *n) {
  int l;
  for (l = 0; l < LAYERS; l++) {
    bl_free(n->layers[l]);
    free(n->w[l]), free(n->gradient[l]), free(n->mean[l]), free(n->square[l]), free(n->y[l]), free(n->dy[l]);
  }
}

/* Logits of m digits, [m, CLASSES], in y[LAYERS - 1]. */
static void forward(bl_layer *const *layers, float *const *y, const float *x, int m) {
  bl_error error;
  int l;
  for (l = 0; l < LAYERS; l++) {
    need(bl_forward(layers[l], m, x, BL_TYPE_F32, 0, y[l], BL_TYPE_F32, 0, NULL, &error), &error);
    x = y[l];
  }
}

/* The cross-entropy of logits with their labels; its gradient, over the number of rows, into dy. */
static double loss_of(const float *logits, const unsigned char *labels, int m, float *dy) {
  double loss = 0;
  int i, c;
  for (i = 0; i < m; i++) {
    const float *row = logits + i * CLASSES;
    double largest = row[0], sum = 0;
    for (c = 1; c < CLASSES; c++) largest = row[c] > largest ? row[c] : largest;
    for (c = 0; c < CLASSES; c++) sum += exp(row[c] - largest);
    loss += log(sum) + largest - row[labels[i]];
    for (c = 0; c < CLASSES; c++)
      dy[i * CLASSES + c] = (float)((exp(row[c] - largest) / sum - (c == labels[i])) / m);
  }
  return loss;
}

/* One step of Adam on m digits; returns their loss. */
static double step(network *n, const float *x, const unsigned char *labels, int m, double rate) {
  const double b1 = 0.9, b2 = 0.999;
  double loss, c1, c2;
  bl_error error;
  int l;
  forward(n->layers, n->y, x, m);
  loss = loss_of(n->y[LAYERS - 1], labels, m, n->dy[LAYERS - 1]);
  for (l = LAYERS - 1; l >= 0; l--) {
    bl_layer_gradients g;
    memset(&g, 0, sizeof g);
    g.struct_size = sizeof g;
    g.x = l == 0 ? x : n->y[l - 1];
    g.y = n->y[l];
    g.dy = n->dy[l];
    g.dx = l == 0 ? NULL : n->dy[l - 1];
    g.dw = n->gradient[l];
    memset(n->gradient[l], 0, weights_of(l) * sizeof(float));
    need(bl_layer_backward(n->layers[l], m, &g, &error), &error);
  }
  n->steps++;
  c1 = 1 - pow(b1, n->steps), c2 = 1 - pow(b2, n->steps);
  for (l = 0; l < LAYERS; l++) {
    size_t i;
    for (i = 0; i < weights_of(l); i++) {
      double g = n->gradient[l][i];
      n->mean[l][i] = (float)(b1 * n->mean[l][i] + (1 - b1) * g);
      n->square[l][i] = (float)(b2 * n->square[l][i] + (1 - b2) * g * g);
      n->w[l][i] -= (float)(rate * (n->mean[l][i] / c1) / (sqrt(n->square[l][i] / c2) + 1e-8));
    }
    need(bl_layer_update(n->layers[l], n->w[l], BL_TYPE_F32, 0, &error), &error);
  }
  return loss;
}

static double accuracy(bl_layer *const *layers, float *const *y, const set *s) {
  int i, c, right = 0;
  forward(layers, y, s->x, s->count);
  for (i = 0; i < s->count; i++) {
    const float *row = y[LAYERS - 1] + i * CLASSES;
    int best = 0;
    for (c = 1; c < CLASSES; c++) best = row[c] > row[best] ? c : best;
    right += best == s->labels[i];
  }
  return 100.0 * right / s->count;
}

/* Trains, and keeps the accuracy on the test digits after every epoch. */
static void train(network *n, const set *digits, const set *test, const char *name, double *curve) {
  int epoch, at, i, k;
  for (epoch = 0; epoch < EPOCHS; epoch++) {
    double loss = 0, rate = 0.002 * (1 + cos(3.14159265358979 * epoch / EPOCHS)) / 2 + 1e-5;
    for (i = digits->count - 1; i > 0; i--) { /* shuffled */
      int j = (int)(random_bits() % (uint32_t)(i + 1));
      unsigned char label = digits->labels[i];
      digits->labels[i] = digits->labels[j], digits->labels[j] = label;
      for (k = 0; k < PIXELS; k++) {
        float v = digits->x[i * PIXELS + k];
        digits->x[i * PIXELS + k] = digits->x[j * PIXELS + k], digits->x[j * PIXELS + k] = v;
      }
    }
    for (at = 0; at < digits->count; at += BATCH) {
      int m = digits->count - at < BATCH ? digits->count - at : BATCH;
      loss += step(n, digits->x + at * PIXELS, digits->labels + at, m, rate);
    }
    curve[epoch] = accuracy(n->layers, n->y, test);
    if (epoch % 5 == 4)
      printf("%-8s epoch %2d: loss %.4f, test accuracy %.2f %%\n", name, epoch + 1, loss / digits->count,
             curve[epoch]);
  }
}

/* ---- the curve ---- */

static void line(FILE *file, const double *curve, const char *colour, const char *name, int y) {
  int i;
  fprintf(file, "<polyline fill=\"none\" stroke=\"%s\" stroke-width=\"2\" points=\"", colour);
  for (i = 0; i < EPOCHS; i++) {
    double shown = curve[i] < 80 ? 80 : curve[i];
    fprintf(file, "%.1f,%.1f ", 50 + 520.0 * i / (EPOCHS - 1), 20 + 15 * (100 - shown));
  }
  fprintf(file, "\"/>\n<text x=\"420\" y=\"%d\" fill=\"%s\">%s: %.2f %%</text>\n", y, colour, name,
          curve[EPOCHS - 1]);
}

static void draw(const char *path, const double *ternary, const double *plain) {
  FILE *file = fopen(path, "w");
  int percent;
  if (file == NULL) fprintf(stderr, "digits: cannot write %s\n", path), exit(1);
  fputs("<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 600 370\" font-family=\"sans-serif\" "
        "font-size=\"13\">\n<rect width=\"600\" height=\"370\" fill=\"white\"/>\n", file);
  for (percent = 80; percent <= 100; percent += 5)
    fprintf(file, "<path d=\"M50 %d H570\" stroke=\"#ddd\"/><text x=\"8\" y=\"%d\">%d %%</text>\n",
            20 + 15 * (100 - percent), 25 + 15 * (100 - percent), percent);
  fprintf(file, "<text x=\"210\" y=\"355\">test accuracy over %d epochs</text>\n", EPOCHS);
  line(file, plain, "#888888", "floats", 270);
  line(file, ternary, "#c03020", "ternary", 290);
  fputs("</svg>\n", file);
  fclose(file);
}

int main(int count, char **words) {
  static double ternary_curve[EPOCHS], float_curve[EPOCHS];
  set digits, test;
  network plain, ternary;
  bl_model *model;
  bl_layer *loaded[LAYERS];
  bl_named_layer named[LAYERS];
  bl_error error;
  float *y[LAYERS];
  uint64_t bytes = 0;
  double before, after;
  int l, same;
  if (count < 2 || count > 4) return fputs("usage: digits DIGITS.BIN [MODEL.BL [CURVE.SVG]]\n", stderr), 2;
  const char *path = count > 2 ? words[2] : "digits.bl";
  read_digits(words[1], &digits, &test);
  plain = new_network(BL_TYPE_F32);
  train(&plain, &digits, &test, "floats", float_curve);
  ternary = new_network(BL_TYPE_TERNARY);
  train(&ternary, &digits, &test, "ternary", ternary_curve);

  /* Saved, loaded, run: the same bits. */
  for (l = 0; l < LAYERS; l++) named[l].name = NAMES[l], named[l].layer = ternary.layers[l];
  need(bl_save(path, named, LAYERS, NULL, 0, &error), &error);
  need(bl_load(NULL, path, NULL, &model, &error), &error);
  for (l = 0; l < LAYERS; l++) {
    bl_layer_info info;
    need(bl_layer_open(model, NAMES[l], NULL, &loaded[l], &error), &error);
    memset(&info, 0, sizeof info);
    info.struct_size = sizeof info;
    need(bl_layer_describe(loaded[l], &info, &error), &error);
    bytes += info.bytes_packed + info.bytes_mapped;
    y[l] = floats((size_t)(DIGITS * SIZES[l + 1]));
  }
  bl_free(model);
  before = accuracy(ternary.layers, ternary.y, &test);
  after = accuracy(loaded, y, &test);
  same = memcmp(y[LAYERS - 1], ternary.y[LAYERS - 1], (size_t)test.count * CLASSES * sizeof(float)) == 0;
  printf("floats:  %.2f %% of %d test digits\n", float_curve[EPOCHS - 1], test.count);
  printf("ternary: %.2f %%; loaded from %s (%lu bytes of weights): %.2f %%, logits %s\n", before, path,
         (unsigned long)bytes, after, same ? "the same to the bit" : "DIFFERENT");
  if (count > 3) draw(words[3], ternary_curve, float_curve);

  for (l = 0; l < LAYERS; l++) bl_free(loaded[l]), free(y[l]);
  free_network(&plain), free_network(&ternary);
  free(digits.x), free(digits.labels), free(test.x), free(test.labels);
  return same ? 0 : 1;
}
