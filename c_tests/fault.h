/* bl_test_fault, which only the build with test hooks has and no header declares. */
#ifndef FAULT_H
#define FAULT_H

typedef bl_status fault_fn(const bl_context *context, uint32_t way, bl_error *error);

#ifdef __SANITIZE_ADDRESS__
/* A payload that panics when it is dropped is leaked on purpose: there is nothing else to do with it. */
#ifdef __cplusplus
extern "C"
#endif
    const char *__lsan_default_suppressions(void);
const char *__lsan_default_suppressions(void) { return "leak:Bomb\n"; }
#endif

#endif
