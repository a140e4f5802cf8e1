#ifndef LLM_MODEL_H
#define LLM_MODEL_H
/** The weights and hyper-parameters of a model of the llama architecture: of a GGUF file, or of the
 *  packed file that model_save made of one. */
#include <stdbool.h>
#include <stddef.h>

#include "attention.h"
#include "bitlinear.h"

/** The linear layers of one block, in the order they are used. */
enum { QUERY, KEY, VALUE, ATTENTION_OUTPUT, GATE, UP, DOWN, LINEARS };

/** Q, K and V have the block's first norm in front of them, gate and up its second; gate is followed
 *  by SiLU, and the output layer preceded by the last norm. */
typedef struct {
  bl_layer *linear[LINEARS];
} block;

typedef struct {
  bl_model *file;
  const char *name;
  size_t block_count, width, ffn_width, vocabulary, context_length;
  attention_shape attention;
  float epsilon;
  size_t rope_pairs;
  double *rope_frequency; /**< [rope_pairs]: radians for each position */
  float *rope_divisors;   /**< [rope_pairs] where the file has them, else NULL */
  block *blocks;
  bl_layer *embedding;
  bl_layer *output;       /**< the same layer as embedding where the file ties them */
} model;

/** Opens the file and packs its layers; those of a packed file are used in place. On failure, after a
 *  message, there is nothing to close. */
bool model_open(model *m, const bl_context *context, const char *path, bl_activation activation);
void model_close(model *m);
/** Writes a packed file. */
bool model_save(const model *m, const char *path);

/** The layers that bl_forward is called on: those of the blocks, one after the other, then the
 *  output layer. */
size_t model_layer_count(const model *m);
const bl_layer *model_layer(const model *m, size_t index);

#endif
