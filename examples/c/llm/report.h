#ifndef LLM_REPORT_H
#define LLM_REPORT_H
/** What a run was made of and how fast it went, on stderr. */
#include <stddef.h>

#include "model.h"

typedef struct {
  double open_seconds;      /**< of the file and its layers */
  double tokenizer_seconds;
  size_t prompt_tokens, generated_tokens;
  double prompt_seconds, generate_seconds;
  size_t prompt_rows; /**< the most rows bl_forward was given at a time; 0: nothing was fed */
} run_figures;

void report(const model *m, const run_figures *figures);

#endif
