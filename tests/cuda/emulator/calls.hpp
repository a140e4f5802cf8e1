// How the driver's functions are written: exported by their names, counted, under the lock.
#pragma once

#include "driver.hpp"

#include <cstring>

using namespace emu;
using namespace emu::driver;

#define EXPORT extern "C" __attribute__((visibility("default")))
/// CALL(name, (parameters), (arguments)) { body }
#define CALL(name, parameters, arguments)                                                 \
    static Result body_##name parameters;                                                 \
    EXPORT int name parameters {                                                          \
        std::lock_guard<std::recursive_mutex> guard(driver::lock);                        \
        counters["calls"]++;                                                              \
        counters["calls:" #name]++;                                                       \
        return body_##name arguments;                                                     \
    }                                                                                     \
    static Result body_##name parameters
#define TRY(call)                                  \
    do {                                            \
        const Result try_result = (call);           \
        if (try_result != SUCCESS) return try_result; \
    } while (0)
#define READY          \
    Context* context;  \
    TRY(ready(context))
