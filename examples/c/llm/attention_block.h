/**
 * Attention of one block of queries, with vectors of LANES floats; attention.c includes this once
 * for each width. The width changes no bit of the results: a lane is a position or a dimension of
 * its own.
 */
#define JOIN_(name, lanes) name##_##lanes
#define JOIN(name, lanes) JOIN_(name, lanes)
#define NAME(name) JOIN(name, LANES)
#define vec NAME(vec)
#define multiply_tile NAME(multiply_tile)
#define soft_max NAME(soft_max)
#define attend_rows NAME(attend_rows)

typedef float vec __attribute__((vector_size(LANES * sizeof(float)), may_alias));

/* out[r][0..16] += sum over k of left[r * row_step + k * step] * right[k][0..16]. Two vectors for
 * each row at a time: with six rows that is as many running sums as registers hold. */
ALWAYS_INLINE void multiply_tile(size_t rows, size_t count, const float *restrict left,
                                 size_t row_step, size_t step, const float *restrict right,
                                 float *restrict out, size_t out_step) {
  for (size_t lane = 0; lane < TILE; lane += 2 * LANES) {
    vec sum[ROWS][2];
    for (size_t r = 0; r < rows; r++) sum[r][0] = sum[r][1] = (vec){0};
    for (size_t k = 0; k < count; k++) {
      const vec *columns = (const vec *)(right + k * TILE + lane);
      vec low = columns[0], high = columns[1];
#pragma GCC unroll 6
      for (size_t r = 0; r < rows; r++) {
        float factor = left[r * row_step + k * step];
        sum[r][0] += factor * low;
        sum[r][1] += factor * high;
      }
    }
    for (size_t r = 0; r < rows; r++) {
      vec *to = (vec *)(out + r * out_step + lane);
      to[0] += sum[r][0];
      to[1] += sum[r][1];
    }
  }
}

/* Makes n scores (a multiple of TILE, the first `seen` of them real) weights; returns their sum.
 * The weights of the others are 0, and adding 0 changes no bit: so it does not matter how many
 * there are, which depends on the queries that happen to share a block. */
ALWAYS_INLINE float soft_max(size_t n, size_t seen, float *scores) {
  float largest[PARTIALS], partial[PARTIALS] = {0};
  for (size_t i = seen; i < n; i++) scores[i] = -INFINITY;
  for (size_t j = 0; j < PARTIALS; j++) largest[j] = scores[j];
  for (size_t i = PARTIALS; i < n; i += PARTIALS)
    for (size_t j = 0; j < PARTIALS; j++)
      largest[j] = scores[i + j] > largest[j] ? scores[i + j] : largest[j];
  for (size_t j = 1; j < PARTIALS; j++)
    largest[0] = largest[j] > largest[0] ? largest[j] : largest[0];
  for (size_t i = 0; i < n; i++) scores[i] = clamp_for_exp(scores[i] - largest[0]);
  for (size_t i = 0; i < n; i++) scores[i] = exp_of(scores[i]);
  for (size_t i = seen; i < n; i++) scores[i] = 0;
  for (size_t i = 0; i < n; i += PARTIALS)
    for (size_t j = 0; j < PARTIALS; j++) partial[j] += scores[i + j];
  return sum_of_partials(partial);
}

ALWAYS_INLINE void attend_rows(size_t rows, const query_block *block) {
  size_t positions = round_up(block->seen[rows - 1], TILE), step = block->value_step;
  memset(block->scores, 0, rows * positions * sizeof(float));
  for (size_t t = 0; t < positions; t += TILE)
    multiply_tile(rows, block->key_dim, block->queries, 1, rows, block->keys + t * block->key_dim,
                  block->scores + t, positions);
  float sum[ROWS];
  for (size_t r = 0; r < rows; r++)
    sum[r] = soft_max(positions, block->seen[r], block->scores + r * positions);
  memset(block->out, 0, rows * step * sizeof(float));
  for (size_t t = 0; t < positions; t += RUN) {
    size_t run = positions - t < RUN ? positions - t : RUN;
    for (size_t d = 0; d < step; d += TILE)
      multiply_tile(rows, run, block->scores + t, positions, 1,
                    block->values + t * step + d * RUN, block->out + d, step);
  }
  for (size_t r = 0; r < rows; r++) {
    float scale = 1.0f / sum[r];
    for (size_t d = 0; d < step; d++) block->out[r * step + d] *= scale;
  }
}

/* The number of rows is a constant in each call, so that the running sums are registers. */
FOR_CPU
static void NAME(attend_block)(const query_block *block) {
  switch (block->rows) {
    case 1: attend_rows(1, block); break;
    case 2: attend_rows(2, block); break;
    case 3: attend_rows(3, block); break;
    case 4: attend_rows(4, block); break;
    case 5: attend_rows(5, block); break;
    default: attend_rows(ROWS, block); break;
  }
}

#undef vec
#undef multiply_tile
#undef soft_max
#undef attend_rows
#undef NAME
#undef JOIN
#undef JOIN_
#undef LANES
#undef FOR_CPU
