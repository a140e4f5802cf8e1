#ifndef BITLINEAR_H
#define BITLINEAR_H

/* Generated from src/capi by `cargo xtask header`. Do not edit. */

#include <stddef.h>
#include <stdint.h>

/**
 * \file bitlinear.h  Low-bit linear layers: y = x W^T + b for weights of 1 to 8 bits. For C99 and C++11, and
 * what came after. A program for Windows that links the DLL defines BL_DLL before it includes this.
 *
 * RULES THAT HOLD FOR EVERY FUNCTION
 * Errors.    A fallible function returns a bl_status and takes `error` last; NULL is allowed. No
 *            function unwinds, prints, exits or installs a signal handler; only bl_context_create
 *            starts threads, where it is asked to.
 * Outputs.   `out` pointers are set to NULL or zero first, so they are defined after a failure.
 * Handles.   bl_context, bl_model, bl_layer and so on. Free each with bl_free, in any order: a handle keeps
 *            what it needs alive. NULL is allowed there. A handle that was freed, or is of another
 *            kind, is BL_ERROR_INVALID_HANDLE in every other call.
 * Memory.    The library never keeps a caller's pointer after the call, save where the text says
 *            BORROWED. It never frees caller's memory; the caller frees none of the library's.
 *            A `const char *` or `const void *` from a handle lives as long as that handle.
 *            It reads and writes no byte outside the matrices it is given.
 * Threads.   Any thread may make any call. Calls that take a handle as `const` may run at the same
 *            time on one handle. bl_free, and calls that say so, must be the only call on theirs.
 * Strings.   UTF-8, NUL-terminated. Names and texts of a file are the file's own bytes.
 * Structs.   Where a struct begins with `struct_size`: zero it, set struct_size = sizeof it, then
 *            the fields you need; zero means the default. Shapes have none, so that zero is an error:
 *            those of bl_heads_options, bl_state_options and bl_heads_run.input_heads. Later versions
 *            only add fields at its end: older programs go on working. bl_error and the items of arrays
 *            (bl_named_layer, bl_named_text, bl_profile_entry, bl_saved_tensor, bl_quantize_target,
 *            bl_quantize_progress) have none and are frozen.
 * Matrices.  Always three arguments: address, bl_type, row stride in bytes (0: rows touch); the
 *            elements of a row are adjacent and need no alignment. The shape comes before them. A
 *            stride that is negative or shorter than a row is refused, for a single row too.
 * Arrays.    Address and count; NULL will do for a count of 0. Where no type or stride goes with it, a
 *            `float *` is aligned to 4 bytes, or refused; but in bl_layer_options and of bl_rotate it
 *            needs no alignment.
 * Limits.    Features and rows of a matrix: 2147483648 (2^31). Threads of a context: 1024. Layers of
 *            one call: 16. What is beyond is BL_ERROR_INVALID_ARGUMENT.
 * Enums.     Values are never renumbered; later versions add some. Any unknown value passed in is
 *            BL_ERROR_UNSUPPORTED.
 * Floats.    Calls run with rounding to nearest and without flushing of subnormals, whatever the
 *            caller's floating-point mode is, and leave that mode as it was.
 */

#define BL_VERSION_MAJOR 0
#define BL_VERSION_MINOR 1
#define BL_VERSION_PATCH 0
/** The version of this header; bl_version() is that of the library. */
#define BL_VERSION (BL_VERSION_MAJOR * 1000000 + BL_VERSION_MINOR * 1000 + BL_VERSION_PATCH)

#ifndef BL_API
# if defined(_WIN32) && defined(BL_DLL)
#  define BL_API __declspec(dllimport)
# else
#  define BL_API
# endif
#endif
#if defined(__cplusplus)
# define BL_NOEXCEPT noexcept
#else
# define BL_NOEXCEPT
#endif


/** `bl_context_options.threads`: as many as affinity and cgroup allow. */
#define BL_THREADS_ALL 4294967295

/** `bl_context_options.flags`: count calls and time them, for bl_profile. */
#define BL_CONTEXT_PROFILE 1

/** `bl_load`: read into memory instead of mapping; the file may then change. */
#define BL_LOAD_COPY 1

/** `bl_load_memory` only: the bytes are BORROWED and outlive the model and its layers. */
#define BL_LOAD_BORROW 2

/**
 * `bl_load`, `bl_load_memory`: compare what bl_save wrote with the sums in it. Files of other tools
 * have none.
 */
#define BL_LOAD_VERIFY 4

/** `bl_model_info.container`, `bl_quantize_options.container`: safetensors, one file or shards. */
#define BL_CONTAINER_SAFETENSORS 1

/** GGUF, one file or parts. */
#define BL_CONTAINER_GGUF 2

/** The packed file of layers that bl_save writes. */
#define BL_CONTAINER_PACKED 3

/** A JSON artifact of burn_dragon. */
#define BL_CONTAINER_BURN_DRAGON 4

/**
 * `bl_layer_options.flags`: BitNet's weight_scale multiplies the weights, whatever config.json says.
 */
#define BL_LAYER_SCALE_MULTIPLIES 1

/** BitNet's weight_scale divides the weights, whatever config.json says. */
#define BL_LAYER_SCALE_DIVIDES 2

/** GPTQ's zero points are stored less 1 ("gptq"), whatever config.json says. */
#define BL_LAYER_GPTQ_V1 4

/** GPTQ's zero points are stored as they are ("gptq_v2"), whatever config.json says. */
#define BL_LAYER_GPTQ_V2 8

/** All matrices of a tensor of three dimensions, one below the other, as one layer. */
#define BL_LAYER_ALL_SLICES 16

/**
 * The norm that the file has before the layer is left out: the caller applies it, or gives another.
 */
#define BL_LAYER_WITHOUT_NORM 32

/**
 * `bl_layer_options.flags`: the tensor (f32, f16 or bf16) is stored [in_features, out_features].
 */
#define BL_LAYER_TRANSPOSED 64

/** `bl_run_options.flags`: adds to what is in y instead of replacing it, after everything else. */
#define BL_RUN_ACCUMULATE 1

/**
 * bl_forward_device: asks the driver whether x, the y's and the workspace are memory of the layers'
 * device. Costs about a microsecond; for tests of a host.
 */
#define BL_RUN_CHECK 2

/** `bl_rotate`: from rotated rows back to plain ones. */
#define BL_ROTATE_INVERSE 1

/** Result of every fallible call. Failures are positive; treat an unknown value as a failure. */
typedef enum {
  /** Done. */
  BL_OK = 0,
  /** NULL, out of range, shapes that do not fit. */
  BL_ERROR_INVALID_ARGUMENT = 1,
  /** NULL, another kind's, or freed before. */
  BL_ERROR_INVALID_HANDLE = 2,
  /** Known, but not by this build, device or type. */
  BL_ERROR_UNSUPPORTED = 3,
  /** Memory could not be had. */
  BL_ERROR_OUT_OF_MEMORY = 4,
  /** A caller's buffer is too small; the needed size was written, or is in the message. */
  BL_ERROR_BUFFER_TOO_SMALL = 5,
  /** No tensor, key or index of that name. */
  BL_ERROR_NOT_FOUND = 6,
  /** The file could not be read or written. */
  BL_ERROR_IO = 7,
  /** The file's content is not what its format says. */
  BL_ERROR_BAD_FILE = 8,
  /** The CUDA driver reported a failure; the message has its name, its number and the call. */
  BL_ERROR_DEVICE = 9,
  /** What does not survive fork() was used in the child: a context's threads, a GPU. */
  BL_ERROR_FORKED = 10,
  /** The caller's progress function said so; nothing was left behind. */
  BL_ERROR_CANCELLED = 11,
  /** No CUDA driver was found, or this build has no CUDA. */
  BL_ERROR_NO_DRIVER = 12,
  /** The CUDA driver is older than CUDA 12.0. */
  BL_ERROR_DRIVER_TOO_OLD = 13,
  /** The CUDA driver sees no GPU. */
  BL_ERROR_NO_DEVICE = 14,
  /** There are no kernels for that GPU: compute capability 7.5 is the oldest. */
  BL_ERROR_UNSUPPORTED_DEVICE = 15,
  /** An earlier failure left the GPU unusable for this process: free all that is on it. */
  BL_ERROR_DEVICE_LOST = 16,
  /** A bug here; the process is sound, free the handles used. */
  BL_ERROR_INTERNAL = 99,
} bl_status;

/** How important a log line is. */
typedef enum {
  BL_LOG_ERROR = 1,
  BL_LOG_WARN = 2,
  BL_LOG_INFO = 3,
  BL_LOG_DEBUG = 4,
} bl_log_level;

/**
 * Element or storage format of a matrix. 1..15 are plain elements; 100 + n is ggml's block format
 * with ggml's id n; the others are formats of other tools (cortex, ruvllm, burn_dragon and so on: whose
 * they are is in docs/formats.md, "Names"). `bl_type_describe` tells names and blocks.
 */
typedef enum {
  /** What is stored, in options that say so. As the type of a matrix it is BL_ERROR_UNSUPPORTED. */
  BL_TYPE_AUTO = 0,
  BL_TYPE_F32 = 1,
  BL_TYPE_F16 = 2,
  BL_TYPE_BF16 = 3,
  BL_TYPE_I8 = 4,
  BL_TYPE_U8 = 5,
  BL_TYPE_I32 = 6,
  BL_TYPE_I16 = 7,
  BL_TYPE_I64 = 8,
  BL_TYPE_F64 = 9,
  BL_TYPE_U32 = 10,
  BL_TYPE_U16 = 11,
  BL_TYPE_U64 = 12,
  BL_TYPE_BOOL = 13,
  BL_TYPE_F8_E4M3 = 14,
  BL_TYPE_F8_E5M2 = 15,
  /** Ternary, 2 bits, f32 scale of the tensor or of each base (cortex). */
  BL_TYPE_TERNARY = 16,
  /** Signs, 1 bit, one f32 scale (burn_dragon). */
  BL_TYPE_BINARY = 17,
  /** Symmetric 4-bit groups (cortex). */
  BL_TYPE_INT4 = 18,
  /** Signed bytes, one f32 scale (burn_dragon). */
  BL_TYPE_INT8 = 19,
  /** Hugging Face BitNet b1.58. */
  BL_TYPE_BITNET_HF = 20,
  /** Ternary in flat blocks of 256 (ruvllm). */
  BL_TYPE_TERNARY_BLOCK = 21,
  /** Ternary packed flat, one f32 scale (burn_dragon). */
  BL_TYPE_TERNARY2 = 22,
  BL_TYPE_GPTQ = 23,
  BL_TYPE_AWQ = 24,
  BL_TYPE_COMPRESSED_TENSORS = 25,
  BL_TYPE_MLX = 26,
  /** Ternary blocks of ruvllm's GGUF files. */
  BL_TYPE_T158 = 27,
  /** I2_S as written on ARM. */
  BL_TYPE_I2_S_ARM = 28,
  /** I2_S as written by x86 builds without ACT_PARALLEL. */
  BL_TYPE_I2_S_ROWS = 29,
  /** Q2_0 of older files: blocks of 128. */
  BL_TYPE_Q2_0_LEGACY = 30,
  /** An element type that has a size but no name here; listed, not read. */
  BL_TYPE_OTHER = 31,
  /**
   * A layer of a file that bl_save wrote; bl_layer_describe tells what its weights were stored in.
   */
  BL_TYPE_PANELS = 32,
  BL_TYPE_Q4_0 = 102,
  BL_TYPE_Q4_1 = 103,
  BL_TYPE_Q5_0 = 106,
  BL_TYPE_Q5_1 = 107,
  BL_TYPE_Q8_0 = 108,
  BL_TYPE_Q2_K = 110,
  BL_TYPE_Q3_K = 111,
  BL_TYPE_Q4_K = 112,
  BL_TYPE_Q5_K = 113,
  BL_TYPE_Q6_K = 114,
  BL_TYPE_IQ2_XXS = 116,
  BL_TYPE_IQ2_XS = 117,
  BL_TYPE_IQ3_XXS = 118,
  BL_TYPE_IQ1_S = 119,
  BL_TYPE_IQ4_NL = 120,
  BL_TYPE_IQ3_S = 121,
  BL_TYPE_IQ2_S = 122,
  BL_TYPE_IQ4_XS = 123,
  BL_TYPE_IQ1_M = 129,
  BL_TYPE_TQ1_0 = 134,
  BL_TYPE_TQ2_0 = 135,
  /** bitnet.cpp's I2_S as in every published file. */
  BL_TYPE_I2_S = 136,
  BL_TYPE_TL1 = 138,
  BL_TYPE_MXFP4 = 139,
  BL_TYPE_NVFP4 = 140,
  BL_TYPE_Q1_0 = 141,
  BL_TYPE_Q2_0 = 142,
  BL_TYPE_TL2 = 150,
  BL_TYPE_PQ2_0 = 242,
  BL_TYPE_PTQ1_0 = 243,
} bl_type;

/** How a layer takes its input. */
typedef enum {
  /**
   * Int8 with one scale for each segment of the weights (row, group or super-block of 256);
   * floats where the weights are plain floats.
   */
  BL_ACTIVATION_AUTO = 0,
  /** Floats: each output is one chain of fused multiply-adds over the dequantised weights. */
  BL_ACTIVATION_F32 = 1,
  /** Int8 with one scale for each row of x. */
  BL_ACTIVATION_INT8_ROW = 2,
  /** Int8 with one scale for each group (or super-block) of the weights. */
  BL_ACTIVATION_INT8_GROUP = 3,
  /** Codes -7 .. 7, scales as with AUTO. */
  BL_ACTIVATION_INT4 = 4,
  /**
   * Codes 0 .. 255, scales as with AUTO from the largest value above 0; values below 0 become 0. For
   * inputs that have passed a ReLU. The layer keeps 4 bytes more for each group of each row.
   */
  BL_ACTIVATION_UINT8_POS = 5,
  /**
   * Int8 for models trained with burn_dragon's rule: one scale for each row of x, twice the mean
   * magnitude over 127 (larger values are clipped), halves rounded away from zero.
   */
  BL_ACTIVATION_INT8_MEAN_RANGE = 6,
  /** The same with codes -7 .. 7. */
  BL_ACTIVATION_INT4_MEAN_RANGE = 7,
  /** The same with codes 0 .. 255 and the mean of what is above 0. */
  BL_ACTIVATION_UINT8_POS_MEAN_RANGE = 8,
} bl_activation;

/** Which part of the weights a layer has. */
typedef enum {
  /** All of them. */
  BL_SHARD_NONE = 0,
  /** Some rows: the parts' y, one after another, are the whole y, bit for bit. */
  BL_SHARD_ROWS = 1,
  /** Some columns, on which x is given: the sum of the parts' y is the whole y. */
  BL_SHARD_COLUMNS = 2,
} bl_shard;

/** What is done to each row of x before anything else, in f32. */
typedef enum {
  BL_NORM_NONE = 0,
  /** (x - mean) / sqrt(mean of (x - mean)^2 + epsilon) * weight + bias. */
  BL_NORM_LAYER = 1,
  /** x / sqrt(mean of x^2 + epsilon) * weight + bias. */
  BL_NORM_RMS = 2,
} bl_norm;

/** What is done to each output after the bias. A NaN stays a NaN. */
typedef enum {
  BL_EPILOGUE_NONE = 0,
  /** max(y - epilogue_threshold, 0). */
  BL_EPILOGUE_RELU = 1,
  /** max(y, 0)^2. */
  BL_EPILOGUE_RELU2 = 2,
  /** y / (1 + exp(-y)). */
  BL_EPILOGUE_SILU = 3,
  /** y / 2 * (1 + erf(y / sqrt(2))). */
  BL_EPILOGUE_GELU_ERF = 4,
  /** y / 2 * (1 + tanh(sqrt(2 / pi) * (y + 0.044715 y^3))). */
  BL_EPILOGUE_GELU_TANH = 5,
} bl_epilogue;

/** What a call computes. */
typedef enum {
  BL_OP_FORWARD = 0,
} bl_op;

/** Kind of a metadata value. */
typedef enum {
  BL_META_U64 = 0,
  BL_META_I64 = 1,
  BL_META_F64 = 2,
  BL_META_BOOL = 3,
  BL_META_STRING = 4,
  BL_META_ARRAY = 5,
} bl_meta_kind;

/** What a device is. */
typedef enum {
  BL_DEVICE_CPU = 0,
  BL_DEVICE_CUDA = 1,
} bl_device_kind;

/** Threads, devices, log, allocator. NULL is the default context: serial, silent. */
typedef struct bl_context bl_context;

/** One packed linear layer, y = x W^T + b. */
typedef struct bl_layer bl_layer;

/** An opened file; its tensors are mapped, not read. */
typedef struct bl_model bl_model;

/** Name and blocks of a type. */
typedef struct {
  uint32_t struct_size;
  /** Weights in a block; 0 where the whole tensor is one. */
  uint32_t block;
  /** Bytes of a block; 0 where there are no blocks of fixed size. */
  uint32_t block_bytes;
  /** 1 for formats with scales, 0 for plain elements. */
  uint32_t is_packed;
  /** Static. */
  const char *name;
} bl_type_info;

/** What failed, for a person. The caller's own; on the stack is fine. Frozen: 256 bytes. */
typedef struct {
  /** The same value as the call returned. */
  bl_status status;
  /** UTF-8, English, NUL-terminated; empty on success. */
  char message[252];
} bl_error;

/** One task of a host's parallel-for. Never unwinds. */
typedef void (*bl_task_fn)(void *task, size_t index);

/**
 * A host's parallel-for: call run(task, i) once for each i in 0..count, on any threads, the calling one
 * among them or not, and come back after the last has returned. Tasks left out are made up for by the
 * calling thread.
 */
typedef void (*bl_parallel_for_fn)(void *user, size_t count, bl_task_fn run, void *task);

/** Gets a line of text for a person. May be called from any thread; must not call the library. */
typedef void (*bl_log_fn)(void *user, bl_log_level level, const char *message);

/**
 * Gives `size` bytes aligned to `alignment` (a power of two), or NULL. Called from any thread. Weights
 * below 4 MiB are cut from chunks of 16 MiB with an alignment of 2 MiB, which the layers of a context
 * share: even the first small layer asks for one. Larger weights, and workspaces of 4 MiB and more, are
 * asked for by themselves with the same alignment, smaller workspaces with one of 64. The library writes
 * zeros to all of it. A chunk is given back after its last layer, the latest one also not before the
 * context is freed.
 */
typedef void *(*bl_alloc_fn)(void *user, size_t size, size_t alignment);

/** Takes back what bl_alloc_fn gave, with the same size and alignment. Called from any thread. */
typedef void (*bl_dealloc_fn)(void *user, void *pointer, size_t size, size_t alignment);

/** How a context is made. */
typedef struct {
  uint32_t struct_size;
  /**
   * 0 or 1: the calling thread only. N: a pool of N threads, the caller counted, which are joined
   * when the context goes; at most 1024. BL_THREADS_ALL: as many as affinity and cgroup allow. With
   * parallel_for: most tasks to hand over at a time (0: as many as affinity and cgroup allow).
   */
  uint32_t threads;
  /** The host's threads, instead of a pool; BORROWED until the context and its layers are gone. */
  bl_parallel_for_fn parallel_for;
  void *parallel_for_user;
  /** NULL: silent. */
  bl_log_fn log;
  void *log_user;
  /** Lines less important than this are not sent. 0: BL_LOG_WARN. */
  bl_log_level log_level;
  /** BL_CONTEXT_PROFILE. */
  uint32_t flags;
  /**
   * For weights and workspaces only; both or neither. BORROWED until the context and its layers
   * are gone.
   */
  bl_alloc_fn alloc;
  bl_dealloc_fn dealloc;
  void *alloc_user;
} bl_context_options;

/** What a context holds. */
typedef struct {
  uint32_t struct_size;
  /** Models, layers, states and projections of the context. */
  uint32_t handles;
  /**
   * Bytes of packed weights: what layers use of the chunks that bl_alloc_fn gives, not the chunks.
   */
  uint64_t packed;
  /** Bytes of mapped files. */
  uint64_t mapped;
  /** Bytes of workspaces in use by calls under way. */
  uint64_t workspace;
  /** Bytes on devices. */
  uint64_t device;
} bl_memory_info;

/** What one kernel, one stage around the kernels, or all calls have done. Frozen. */
typedef struct {
  /**
   * A kernel, named as bl_plan does: the products alone. Or a stage: "norm", "rotation", "quantize" (x
   * into codes and scales, or into floats in packed order), "epilogue" (scale, bias, epilogue and the
   * way into y). Or "scale_misses" and "scale_hits": integer activations that found scales in x, and those
   * with the one of bl_layer_options.activation_scale or bl_layer_calibrate; only counted. Or "call":
   * bl_forward and bl_forward_many from beginning to end. Static.
   */
  const char *kernel;
  /** Layers that ran in it, or had such scales; of stages and "call" the calls. */
  uint64_t calls;
  /** Of kernels and stages summed over the threads; of "call" what passed on the clock. */
  uint64_t nanoseconds;
  /** Of weights and scales read; of stages 4 for each number of x or y. */
  uint64_t bytes;
  /** Multiplications and additions of products; 0 for stages. */
  uint64_t operations;
} bl_profile_entry;

/** A device that layers run on. */
typedef struct {
  uint32_t struct_size;
  /** BL_DEVICE_CPU, BL_DEVICE_CUDA. */
  bl_device_kind kind;
  uint64_t memory_total;
  /** 0 on a GPU that this process has not used yet: asking would take memory there. */
  uint64_t memory_free;
  /** Processors that this process may use; streaming multiprocessors. */
  uint32_t compute_units;
  /** CUDA: 10 * major + minor of the compute capability; layers need 75 or more. */
  uint32_t arch;
  /** Static. */
  const char *name;
  /** The instruction sets found, best first: "avx512vnni avx2 scalar"; of a GPU "cuda". Static. */
  const char *features;
} bl_device_info;

/** How a file is opened. */
typedef struct {
  uint32_t struct_size;
  /** BL_LOAD_COPY, BL_LOAD_BORROW, BL_LOAD_VERIFY. */
  uint32_t flags;
} bl_load_options;

/** What a model file is. */
typedef struct {
  uint32_t struct_size;
  /** BL_CONTAINER_*: the kind of file. */
  uint32_t container;
  int64_t tensors;
  int64_t metadata;
  /** Bytes of all files of the model. */
  uint64_t bytes;
  /** See bl_model_layer. */
  int64_t layers;
} bl_model_info;

/** One stored tensor. */
typedef struct {
  uint32_t struct_size;
  bl_type type;
  /** Lives as long as the model handle, as does `data`. */
  const char *name;
  /** How many entries of `shape` count. */
  uint32_t dims;
  uint32_t reserved;
  /** Outermost first: a weight is [out_features, in_features]. */
  int64_t shape[4];
  /** The stored bytes, of any alignment. */
  const void *data;
  uint64_t bytes;
} bl_tensor_info;

/**
 * One layer, as the naming rules of its format make it (docs/formats.md). The names of its tensors are
 * NULL where it has none in that role; all live as long as the model handle.
 */
typedef struct {
  uint32_t struct_size;
  /** The format of its weights. */
  bl_type type;
  /** What its tensors have in common: `blk.0.attn_q` of `blk.0.attn_q.weight`. */
  const char *name;
  /** 0 where they are not known, which `status` tells. Of one matrix, where there are several. */
  int64_t in_features;
  int64_t out_features;
  /** Matrices: more than 1 in tensors of three dimensions (experts). */
  int64_t slices;
  /**
   * BL_OK, or what bl_layer_open without options will answer, as far as that shows without reading the
   * weights: a part is missing, an option must decide, the format is not read. bl_layer_open says it
   * in words.
   */
  bl_status status;
  uint32_t reserved;
  /** NULL only where the weights are missing. */
  const char *weight;
  const char *scales;
  /** Zero points or minima of groups. */
  const char *zeros;
  /** The group of each column. */
  const char *group_index;
  const char *shape;
  /** What x W^T is multiplied with, before the bias. */
  const char *product_scale;
  const char *bias;
  /** The gain of an RMS norm of x before the layer. */
  const char *norm;
} bl_model_layer_info;

/** One metadata value. */
typedef struct {
  uint32_t struct_size;
  bl_meta_kind kind;
  /** NULL for items of arrays. Lives as long as the model handle, as does `string`. */
  const char *key;
  /** Integers and bools; a u64 keeps its bits. */
  int64_t integer;
  /** Any number, as a double. */
  double number;
  /** BL_META_STRING: NUL-terminated; `items` is its length in bytes (it may hold NULs). */
  const char *string;
  /** BL_META_ARRAY: the kind of its items. */
  bl_meta_kind item_kind;
  uint32_t reserved;
  /** BL_META_ARRAY: how many items. */
  int64_t items;
} bl_meta_info;

/**
 * How a layer is made: y = epilogue(rotation(norm(x)) W^T + bias). An option that has no meaning for a
 * format is refused with it, flags excepted; a value out of its range is BL_ERROR_INVALID_ARGUMENT. The float
 * arrays need no alignment.
 */
typedef struct {
  uint32_t struct_size;
  /**
   * BL_TYPE_AUTO: as stored; bl_layer_create from floats: ternary. Else which format it is, where the
   * file does not tell: BL_TYPE_I2_S_ARM or _ROWS of an I2_S tensor; one of several that a layer is
   * stored in; that of packed bytes whose scales are given below; BL_TYPE_BITNET_HF of floats that are
   * to be ternarised as transformers does.
   *
   * Or what plain floats are rounded to, by fixed rules (docs/quantize.md): f32, f16, bf16; ternary
   * (one scale, mean |w| of the matrix; with group_size one for each group of a row), binary
   * (mean |w| of the row), int8 (max |w| / 127 of the row), int4 (max |w| / 7 of the group); q4_0,
   * q4_1, q5_0, q5_1, q8_0, tq1_0, tq2_0, mxfp4, q1_0, q2_0, q2_0-legacy, pq2_0 and ptq1_0 as their
   * own tools do. bl_layer_create also: bitnet-hf, ternary2, ternary-block, i2_s. Other types are
   * BL_ERROR_UNSUPPORTED: for q2_k, q3_k, q4_k, q5_k and q6_k there is a search, bl_model_quantize,
   * but no rule. Columns that are no multiple of the type's block are BL_ERROR_INVALID_ARGUMENT.
   * Packed weights are not rounded again: BL_ERROR_UNSUPPORTED.
   */
  bl_type type;
  /** How the layer takes x. */
  bl_activation activation;
  /** BL_LAYER_*. */
  uint32_t flags;
  /**
   * out_features values that are added to y, in place of the file's; copied. NULL: the file's (opened
   * by a tensor's name, there is none). With shards it is the whole layer's: of rows each takes its own
   * part, of columns the one of rank 0 takes it.
   */
  const float *bias;
  /**
   * Scales in place of the file's, for formats that keep them apart (docs/formats.md): read once.
   * bl_layer_create needs them there. Ternary: one for each base; binary, ternary2, int8: one, or one
   * for each row; int4, compressed-tensors: one for each group of each row; bitnet-hf: one, which
   * multiplies; ternary-block: one for each block.
   */
  const float *scales;
  int64_t scale_count;
  /**
   * Columns of a group; 0: what the file or the number of scales says; from floats: int4 128,
   * ternary-block 256, ternary one scale for all.
   */
  int64_t group_size;
  /** Which matrix of a tensor of three dimensions, from 0. */
  int64_t slice;
  /** Where packed bytes do not tell them (rows or columns of padding, flat arrays); 0: they do. */
  int64_t in_features;
  int64_t out_features;
  /**
   * Done to each row of x first, once per row. Where the file has a norm before the layer it is done
   * without being asked for, and must not be asked for (but see BL_LAYER_WITHOUT_NORM).
   */
  bl_norm norm;
  /** Finite and not negative. 0: 1e-5. */
  float norm_epsilon;
  /** in_features factors; copied. NULL: none. Only with a norm. */
  const float *norm_weight;
  /** in_features values to add; copied. NULL: none. Only with a norm. */
  const float *norm_bias;
  /**
   * Each block of so many columns of the (normed) row goes through the Walsh-Hadamard transform, as
   * bl_rotate says: a power of two from 2 to 16384 that divides in_features. 0: no rotation, but
   * where the file itself says that this weight wants one (prism.hadamard.* metadata) it is done
   * without being asked for, and must not be asked for.
   */
  uint32_t rotation_block;
  /** Done to each output after the bias. */
  bl_epilogue epilogue;
  /**
   * in_features signs, +1 or -1, that the row is multiplied with before the transform; copied.
   * NULL: all +1. Only with rotation_block.
   */
  const float *rotation_signs;
  /** BL_EPILOGUE_RELU only: finite. */
  float epilogue_threshold;
  /**
   * Integer activations only: one scale for all of x, q = clamp(round(x * (1 / scale)), -127, 127)
   * (or the codes' own range), instead of one that follows from each segment's largest value. It and
   * its inverse finite and above 0. 0: none.
   */
  float activation_scale;
  /**
   * Make the layer of a part of the weights: part shard_rank (from 0) of shard_count. Parts are as
   * even as rows, or whole groups of columns, allow; bl_layer_describe tells where a part begins.
   * Of columns there is no norm, which needs all of x, and no epilogue, which needs the whole sum.
   */
  bl_shard shard;
  uint32_t shard_rank;
  uint32_t shard_count;
  /** Must be 0. */
  uint32_t reserved;
  /**
   * Where the layer is and runs, a number of bl_device_describe: 0, the CPU, or a GPU. It never runs
   * elsewhere: what a GPU cannot do is an error.
   */
  uint32_t device;
  /** Must be 0. */
  uint32_t device_flags;
} bl_layer_options;

/** What a layer is. */
typedef struct {
  uint32_t struct_size;
  /** The format that the weights were stored in. */
  bl_type type;
  int64_t in_features;
  int64_t out_features;
  /** Owned by the layer; on a device, its bytes there. */
  uint64_t bytes_packed;
  /** Read in place from the model's file. */
  uint64_t bytes_mapped;
  /** Where it is, as bl_device_describe counts; 0: the CPU. */
  uint32_t device;
  /** How the layer takes x; BL_ACTIVATION_AUTO has been resolved. */
  bl_activation activation;
  bl_norm norm;
  bl_epilogue epilogue;
  /** Columns of a block of the rotation, asked for or declared by the file; 0: none. */
  uint32_t rotation_block;
  uint32_t reserved;
  /**
   * Of the whole weights, the row and the column that the layer begins with: 0 where it is no shard.
   */
  int64_t first_row;
  int64_t first_column;
} bl_layer_info;

/** What a call will do. */
typedef struct {
  uint32_t struct_size;
  /**
   * How many at most compute at a time: those of the context's pool, the caller counted, or the
   * tasks that its parallel_for is given. A small product takes fewer. 0 on a device.
   */
  uint32_t threads;
  /**
   * "w4g_i8_avx512vnni_1x64": layout, activation, instruction set, rows of x by rows of W. Of a layer on
   * a device the product's kernel: "bl_w4_few8". Static.
   */
  const char *kernel;
  /** Of a layer on a device it is memory there, for bl_forward_device. */
  uint64_t workspace_size;
  /** The alignment that the workspace is used at. Any other will do: the size has room for it. */
  uint64_t workspace_alignment;
  /** Weights and scales read by one call. */
  uint64_t bytes_read;
  /** Multiplications and additions; 2^64 - 1: as many, or more. */
  uint64_t operations;
} bl_plan_info;

/** How a call runs. */
typedef struct {
  uint32_t struct_size;
  /** BL_RUN_ACCUMULATE; bl_forward_device also BL_RUN_CHECK. */
  uint32_t flags;
  /**
   * NULL: the library allocates. Else at least bl_plan's workspace_size bytes; not shared by calls
   * that run at the same time. bl_forward_device: memory of the device, which must be given; bl_forward
   * and bl_forward_many of layers on a device take none.
   */
  void *workspace;
  size_t workspace_size;
} bl_run_options;

/** A layer and its name in a file. Frozen. */
typedef struct {
  /** What bl_layer_open will know it by. */
  const char *name;
  const bl_layer *layer;
} bl_named_layer;

/** A text and its key in a file. Frozen. */
typedef struct {
  /** Must not begin with "bitlinear.". */
  const char *key;
  const char *value;
} bl_named_text;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/** BL_VERSION of the loaded library. Same major (and, while it is 0, same minor): usable. */
BL_API uint32_t bl_version(void) BL_NOEXCEPT;

/** Version, commit, compiler, target and features in one line. Static. */
BL_API const char *bl_build_info(void) BL_NOEXCEPT;

/** "BL_OK" and so on; "BL_UNKNOWN" for values that are none. Static. */
BL_API const char *bl_status_name(bl_status status) BL_NOEXCEPT;

/** Name and blocks of a type; BL_ERROR_UNSUPPORTED for a number that is none. */
BL_API bl_status bl_type_describe(bl_type type, bl_type_info *info, bl_error *error) BL_NOEXCEPT;

/**
 * Makes a context: threads and settings that layers and calls use. `options` may be NULL.
 * Reads the environment variable BITLINEAR_ISA (scalar, avx2, avxvnni, avx512vnni, or on ARM scalar,
 * neon, dotprod, i8mm), which narrows the instruction sets used; empty is as if it were not set, an unknown
 * name is BL_ERROR_INVALID_ARGUMENT, one that this CPU lacks BL_ERROR_UNSUPPORTED. The default context
 * reads it at its first use.
 */
BL_API
bl_status bl_context_create(const bl_context_options *options,
                            bl_context **out,
                            bl_error *error)
BL_NOEXCEPT;

/**
 * Frees a context, model, layer or other handle. In any order: a handle keeps alive what it needs. NULL does
 * nothing, nor does a handle that was freed before. No other call on the handle may be under way.
 */
BL_API
void bl_free(void *handle)
BL_NOEXCEPT;

/** Handles and bytes alive of a context. NULL: of the default one. */
BL_API
bl_status bl_memory(const bl_context *context,
                    bl_memory_info *info,
                    bl_error *error)
BL_NOEXCEPT;

/**
 * Copies the counters of a context made with BL_CONTEXT_PROFILE: one entry for each kernel that ran and
 * for each stage around the kernels, and last one for whole calls; between them, where layers made integers
 * of x, how many found scales in it and how many used a fixed one (see bl_profile_entry). Counting costs
 * two readings of the clock for each tile of 64 outputs.
 * *count is how many there are. With entries NULL and capacity 0 only the count is told; a capacity
 * that is too small is BL_ERROR_BUFFER_TOO_SMALL, and nothing is copied or zeroed. reset != 0 zeroes them
 * after the copy: what calls count meanwhile is in the next one. Counters stay at 2^64 - 1 instead of wrapping.
 */
BL_API
bl_status bl_profile(const bl_context *context,
                     bl_profile_entry *entries,
                     size_t capacity,
                     size_t *count,
                     uint32_t reset,
                     bl_error *error)
BL_NOEXCEPT;

/**
 * The devices of this build and machine: 0 is the CPU, then come the GPUs in the CUDA driver's order. Past
 * the last: BL_ERROR_NOT_FOUND, whose message says why there are no GPUs. Index 1 opens the CUDA driver, where
 * there is one, for the first time.
 */
BL_API
bl_status bl_device_describe(const bl_context *context,
                             uint32_t index,
                             bl_device_info *info,
                             bl_error *error)
BL_NOEXCEPT;

/**
 * Opens a model: a GGUF file (or the first part of a split one), a safetensors file, an index of
 * shards or the folder they are in, a file that bl_save wrote, a JSON artifact of burn_dragon (read,
 * not mapped). The content tells the kind. Only headers are read; tensors are mapped. The file must not
 * be cut or rewritten while it is mapped: reading a missing page would stop the process with SIGBUS.
 * BL_LOAD_COPY reads it into memory instead, and then it may change.
 * BL_LOAD_VERIFY reads all of a file that bl_save wrote and compares it with the sums in it.
 */
BL_API
bl_status bl_load(const bl_context *context,
                  const char *path,
                  const bl_load_options *options,
                  bl_model **out,
                  bl_error *error)
BL_NOEXCEPT;

/** The same from bytes in memory, which are copied unless BL_LOAD_BORROW. */
BL_API
bl_status bl_load_memory(const bl_context *context,
                         const void *data,
                         size_t size,
                         const bl_load_options *options,
                         bl_model **out,
                         bl_error *error)
BL_NOEXCEPT;

/** Kind, counts and size of a model. */
BL_API
bl_status bl_model_describe(const bl_model *model,
                            bl_model_info *info,
                            bl_error *error)
BL_NOEXCEPT;

/** A tensor by name, or by index where name is NULL. BL_ERROR_NOT_FOUND where there is none. */
BL_API
bl_status bl_model_tensor(const bl_model *model,
                          const char *name,
                          int64_t index,
                          bl_tensor_info *info,
                          bl_error *error)
BL_NOEXCEPT;

/**
 * A layer by name, or by index where name is NULL. BL_ERROR_NOT_FOUND where there is none. A layer that
 * cannot be opened is listed too: see `status`. A name under which weights are stored in several formats
 * is BL_ERROR_INVALID_ARGUMENT; by index each is listed.
 */
BL_API
bl_status bl_model_layer(const bl_model *model,
                         const char *name,
                         int64_t index,
                         bl_model_layer_info *info,
                         bl_error *error)
BL_NOEXCEPT;

/**
 * A metadata value by key, or by index where key is NULL. BL_ERROR_NOT_FOUND where there is none.
 */
BL_API
bl_status bl_model_meta(const bl_model *model,
                        const char *key,
                        int64_t index,
                        bl_meta_info *info,
                        bl_error *error)
BL_NOEXCEPT;

/**
 * One item of an array value, as if it were a value of its own (its key is NULL). Takes the same time
 * for every item.
 */
BL_API
bl_status bl_model_meta_item(const bl_model *model,
                             const char *key,
                             int64_t item,
                             bl_meta_info *info,
                             bl_error *error)
BL_NOEXCEPT;

/**
 * Makes a layer of a model. `name` is a layer's, "blk.0.attn_q", as bl_model_layer lists them: its weights
 * with scales, bias and what else its format has beside them. Or it is a tensor's, "blk.0.attn_q.weight":
 * that matrix alone, [out_features, in_features], as it is stored, WITHOUT the bias and the scale beside
 * it; a tensor of one dimension is a layer of one row. Where both have the name, the tensor is meant. So
 * open layers by layers' names, tensors where only the matrix is wanted. The weights are packed, exactly:
 * nothing is quantised again, save plain floats where options.type asks for it. A layer of a file that
 * bl_save wrote is used in place. A layer of which a part is missing is BL_ERROR_BAD_FILE, and what neither
 * tensors nor config.json tell is BL_ERROR_INVALID_ARGUMENT that names the option which decides. The layer
 * keeps what it needs of the model alive; the model may be freed. Runs on the model's context.
 *
 * A weight that the file names as Hadamard-folded (prism.hadamard.* metadata) gets the rotation of its
 * input by itself; where that metadata is not understood, no layer of the file is opened.
 */
BL_API
bl_status bl_layer_open(const bl_model *model,
                        const char *name,
                        const bl_layer_options *options,
                        bl_layer **out,
                        bl_error *error)
BL_NOEXCEPT;

/**
 * Makes a layer from weights [out_features, in_features] in memory, which are copied: floats (f32, f16,
 * bf16), which are rounded to options.type (BL_TYPE_AUTO: ternary), or a packed format, which is kept
 * exactly. Those with their scales: q4_0, q4_1, q5_0, q5_1, q8_0, q2_k, q3_k, q4_k, q5_k, q6_k, iq1_s,
 * iq4_nl, iq4_xs, tq1_0, tq2_0, mxfp4, q1_0, q2_0, q2_0-legacy, pq2_0, ptq1_0, i2_s, i2_s-arm, i2_s-rows,
 * t158. Those whose scales stand apart, in options.scales: ternary, binary, int4, int8, bitnet-hf,
 * ternary-block, ternary2, compressed-tensors. Any other type is BL_ERROR_UNSUPPORTED; columns that are no
 * multiple of the type's block are BL_ERROR_INVALID_ARGUMENT.
 */
BL_API
bl_status bl_layer_create(const bl_context *context,
                          int64_t out_features,
                          int64_t in_features,
                          const void *weights,
                          bl_type type,
                          int64_t stride,
                          const bl_layer_options *options,
                          bl_layer **out,
                          bl_error *error)
BL_NOEXCEPT;

/**
 * Packs new weights of the same shape into a layer that bl_layer_create made, by the same rule and into
 * the same format; bias and the rest stay. They are floats, or of the layer's own format where that has its
 * scales in it. Must be the only call on the layer. After a failure the layer is as it was.
 */
BL_API
bl_status bl_layer_update(bl_layer *layer,
                          const void *weights,
                          bl_type type,
                          int64_t stride,
                          bl_error *error)
BL_NOEXCEPT;

/** Shape, format and size of a layer. */
BL_API
bl_status bl_layer_describe(const bl_layer *layer,
                            bl_layer_info *info,
                            bl_error *error)
BL_NOEXCEPT;

/**
 * Writes `rows` rows of the dequantised weights, from first_row on, into dst (f32, f16 or bf16): what
 * float activations are multiplied with, times the factor of the product where the layer has one,
 * after norm and rotation.
 */
BL_API
bl_status bl_layer_read(const bl_layer *layer,
                        int64_t first_row,
                        int64_t rows,
                        void *dst,
                        bl_type dst_type,
                        int64_t dst_stride,
                        bl_error *error)
BL_NOEXCEPT;

/**
 * What bl_forward on m rows of x will run, and the workspace it needs so that it allocates nothing.
 */
BL_API
bl_status bl_plan(const bl_layer *layer,
                  bl_op op,
                  int64_t m,
                  bl_type x_type,
                  bl_plan_info *info,
                  bl_error *error)
BL_NOEXCEPT;

/**
 * y[m x out_features] = x[m x in_features] W^T + b, with the norm, rotation and epilogue that the
 * layer was made with. x and y are f32, f16 or bf16, of any alignment, and do not overlap, which is not
 * checked. m is 0 to 2147483648; 0 writes nothing. A row of y does not depend, in any bit, on the other
 * rows, on the number of threads, on alignment or on the CPU (docs/numerics.md). A row of x with a NaN or
 * an infinity gives, with integer activations, a row of NaN.
 *
 * A layer on a device gives the same bits. x and y are the host's memory all the same: they are copied, as
 * f32, and the call comes back when y is there. bl_forward_device leaves them on the device.
 */
BL_API
bl_status bl_forward(const bl_layer *layer,
                     int64_t m,
                     const void *x,
                     bl_type x_type,
                     int64_t x_stride,
                     void *y,
                     bl_type y_type,
                     int64_t y_stride,
                     const bl_run_options *options,
                     bl_error *error)
BL_NOEXCEPT;

/**
 * Several layers, 1 to 16, on the same x (Q, K and V; gate and up): ys[i] = x W_i^T + b_i, each bit for
 * bit what bl_forward gives. x is quantised once (and normed and rotated, where all layers do that alike)
 * and all layers are one parallel region. The layers have the same in_features, belong to one context
 * and are on one device; the y's are of one type and do not overlap. y_strides is
 * NULL (rows touch) or has one stride for each layer. A workspace as large as the layers' planned
 * ones together is always enough.
 */
BL_API
bl_status bl_forward_many(const bl_layer *const *layers,
                          size_t count,
                          int64_t m,
                          const void *x,
                          bl_type x_type,
                          int64_t x_stride,
                          void *const *ys,
                          bl_type y_type,
                          const int64_t *y_strides,
                          const bl_run_options *options,
                          bl_error *error)
BL_NOEXCEPT;

/**
 * Copies a layer to a device, or back (0: the CPU): the same weights and settings, to the bit, in the same
 * context. The layer stays. memory_size NULL: the library allocates. Else the copy lies in the host's own
 * device memory: *memory_size bytes at `memory`, a multiple of 256, BORROWED until the copy is freed and
 * work that uses it is done; *memory_size becomes the bytes that are needed, with memory NULL that alone is
 * told and *out is NULL. For the CPU memory and memory_size are NULL.
 */
BL_API
bl_status bl_layer_copy(const bl_layer *layer,
                        uint32_t device,
                        void *memory,
                        size_t *memory_size,
                        bl_layer **out,
                        bl_error *error)
BL_NOEXCEPT;

/**
 * bl_forward_many (1 to 16 layers) on the caller's CUDA stream, for layers on one GPU: x, the y's and the workspace are
 * memory of that GPU, aligned to their elements, and strides are multiples of an element. `layers`, `ys`
 * and `y_strides` are arrays of the host's. The work is put on the stream, and the call comes back:
 * nothing is allocated, loaded or waited for, so that it may be captured in a graph. What is captured holds
 * for its m, its addresses and these layers as they are: freeing or calibrating one makes it wrong.
 * bl_layer_update keeps a layer's addresses: a graph then works with the new weights.
 *
 * The workspace must be given, as large as the layers' planned ones together; a workspace for m rows does
 * for fewer. No call on another stream uses it before this one's work is done. `stream` is a CUstream
 * (cudaStream_t) of the GPU's primary context, the one of the CUDA runtime; NULL is the default stream,
 * which cannot be captured. The thread's current context stays what it is.
 *
 * A failure of the kernels appears later: at a call of the host's that waits, or as
 * BL_ERROR_DEVICE_LOST of this library's next call on the device.
 */
BL_API
bl_status bl_forward_device(const bl_layer *const *layers,
                            size_t count,
                            int64_t m,
                            const void *x,
                            bl_type x_type,
                            int64_t x_stride,
                            void *const *ys,
                            bl_type y_type,
                            const int64_t *y_strides,
                            const bl_run_options *options,
                            void *stream,
                            bl_error *error)
BL_NOEXCEPT;

/**
 * Rotates rows of x (f32, f16 or bf16) in place: each block of `block` columns, a power of two from 2
 * to 16384 that divides `columns`, becomes H (s * x), where s are `columns` signs, +1 or -1 (NULL: all
 * +1), and H[r][c] = (-1)^popcount(r & c) / sqrt(block). With BL_ROTATE_INVERSE it becomes s * (H x):
 * plain rows from the rotated ones that some files have in their embedding tables
 * (prism.hadamard.inverse_weight_names). Runs on the calling thread; rows = 0 does nothing.
 */
BL_API
bl_status bl_rotate(int64_t rows,
                    int64_t columns,
                    void *x,
                    bl_type x_type,
                    int64_t x_stride,
                    uint32_t block,
                    const float *signs,
                    uint32_t flags,
                    bl_error *error)
BL_NOEXCEPT;

/**
 * Writes layers and texts to a file, which bl_load maps and bl_layer_open uses in place: the weights
 * are in it as they lie in memory. A file of that name stays whole until the new one is on the disk; a
 * failure leaves it, and nothing else. Texts come back as metadata; their keys do not begin with
 * "bitlinear.". The file serves every CPU. Layers on a device are copied back for the time of the call.
 */
BL_API
bl_status bl_save(const char *path,
                  const bl_named_layer *layers,
                  size_t layer_count,
                  const bl_named_text *texts,
                  size_t text_count,
                  bl_error *error)
BL_NOEXCEPT;

/**
 * Writes rows x columns numbers from one type to another. Both ways, packed formats byte for byte as
 * their own tools: f32, f16, bf16, q4_0, q4_1, q5_0, q5_1, q8_0, tq1_0, tq2_0, mxfp4, q1_0, q2_0,
 * q2_0-legacy, pq2_0, ptq1_0. From them only: q2_k, q3_k, q4_k, q5_k, q6_k, iq1_s, iq4_nl, iq4_xs,
 * i2_s, i2_s-arm, i2_s-rows, t158. Any other type is BL_ERROR_UNSUPPORTED, one whose scales stand apart
 * as src BL_ERROR_INVALID_ARGUMENT; so are columns that are no multiple of a type's block. rows = 0
 * does nothing. src and dst do not overlap. After a failure dst may hold some of the rows. Runs on the
 * calling thread.
 */
BL_API
bl_status bl_convert(const bl_context *context,
                     int64_t rows,
                     int64_t columns,
                     const void *src,
                     bl_type src_type,
                     int64_t src_stride,
                     void *dst,
                     bl_type dst_type,
                     int64_t dst_stride,
                     bl_error *error)
BL_NOEXCEPT;

/*
 * UNSTABLE UNTIL 1.0: what stands below may change with any minor version. The rules at the top hold.
 */

/**
 * `bl_quantize_options.flags`: scales by the types' fixed rules, byte for byte as their own tools,
 * instead of scales of least error. Q2_K to Q6_K have no fixed rule.
 */
#define BL_QUANTIZE_FIXED 1

/**
 * Each column's error is made up for by the columns after it, as far as the calibration of the layer's
 * input says that they can; every chosen layer needs it.
 */
#define BL_QUANTIZE_COMPENSATE 2

/** Chosen layers that are packed already are dequantised and quantised again. */
#define BL_QUANTIZE_AGAIN 4

/** `bl_codes.flags`: all rows share a scale. */
#define BL_CODES_PER_TENSOR 1

/** bl_quantize: the scales are given, not found. */
#define BL_CODES_FIXED_SCALES 2

/**
 * `bl_pack_weights`: the values are code * scale already: the largest magnitude (int8: twice the mean,
 * as from f32 weights) gives the scale.
 */
#define BL_PACK_DEQUANTIZED 1

/** `bl_heads_options.flags`: x has one scale, not one for each token. */
#define BL_HEADS_PER_TENSOR 1

/** The weights are codes that were rounded before, as bl_pack_weights packs them. */
#define BL_HEADS_PACKED 2

/** `bl_heads_run.flags`: y = max(y - threshold, 0). */
#define BL_HEADS_RELU 1

/** y is quantised as x is, and taken back: y = code * scale. */
#define BL_HEADS_QUANTIZE_OUTPUT 2

/** `bl_state_options.flags`: updates measure what they lose. */
#define BL_STATE_MEASURED 1

/** `bl_runtime_config.targets`: decoder_x. */
#define BL_ROLE_X 1

/** decoder_y. */
#define BL_ROLE_Y 2

/** encoder. */
#define BL_ROLE_RESIDUAL 4

/** `bl_runtime_config.flags`: quantise; without it nothing else counts. */
#define BL_CONFIG_ENABLE 1

/** Follow the papers to the letter. */
#define BL_CONFIG_STRICT 2

/** `bl_runtime_plan`: the model is being trained. */
#define BL_PLAN_TRAINING 1

/** `bl_runtime_info.capabilities`: kernels for packed weights, of any speed. */
#define BL_CAN_PACKED_REFERENCE 1

/** Vector kernels for every format of weights. */
#define BL_CAN_NATIVE_LOW_BIT 2

/** Vector kernels for projections of heads. */
#define BL_CAN_NATIVE_PROJECTION 4

/** Vector kernels for the decoder tail. */
#define BL_CAN_NATIVE_DECODER_TAIL 8

/** Vector code for int8 blocks of state. */
#define BL_CAN_NATIVE_RHO_INT8 16

/** What weights or activations are kept as in the low-bit runtime. */
typedef enum {
  /** What a field's text says. */
  BL_LOW_BIT_UNSET = 0,
  /** Not quantised: two bytes a value. */
  BL_LOW_BIT_FP16 = 1,
  /** Bytes. */
  BL_LOW_BIT_INT8 = 2,
  /** Activations: -7 .. 7, two to a byte, the earlier one in the low bits. */
  BL_LOW_BIT_INT4 = 3,
  /** Activations: 0 .. 255; what is negative becomes 0. */
  BL_LOW_BIT_UINT8_POS = 4,
  /** Weights: signs. */
  BL_LOW_BIT_SIGN1 = 5,
  /** Weights: -1, 0 and 1. */
  BL_LOW_BIT_TERNARY158 = 6,
  /** Weights: the same as BL_LOW_BIT_TERNARY158. */
  BL_LOW_BIT_PACKED2 = 7,
} bl_low_bit;

/**
 * How a compressed state is stored: blocks of 32 values with one f32 scale each, codes from the lowest
 * bits of a byte on, each block from a byte's beginning.
 */
typedef enum {
  /** s = max(max |v| / 127, 1e-8), round(v / s) in a byte, halves away from zero. */
  BL_STATE_INT8 = 0,
  /** s = max(mean |v|, 1e-8); 0 where |v| < s, else the sign: code q + 1 in 2 bits. */
  BL_STATE_TERNARY = 1,
  /** s = max(mean |v|, 1e-8); +1 (bit 1) where v >= 0, else -1. */
  BL_STATE_BINARY = 2,
} bl_state_format;

/** Which paper's rules a model follows. */
typedef enum {
  BL_PROTOCOL_NONE = 0,
  BL_PROTOCOL_BITNET_B1 = 1,
  BL_PROTOCOL_BITNET_B158 = 2,
  BL_PROTOCOL_BITNET_A48 = 3,
  BL_PROTOCOL_BITNET_V2 = 4,
} bl_protocol;

/** How a model is trained. */
typedef enum {
  /** Float products of fake-quantised values. */
  BL_TRAINING_QAT_STE = 0,
  /** Forward on packed kernels. */
  BL_TRAINING_KERNEL = 1,
} bl_training_mode;

/** How a model is run. */
typedef enum {
  BL_INFERENCE_OFFLINE_PACK = 0,
  BL_INFERENCE_FAKE_QUANT = 1,
} bl_inference_mode;

/** What the forward pass keeps for the backward one. */
typedef enum {
  BL_SAVED_DISABLED = 0,
  /** Quantised inputs. */
  BL_SAVED_CACHE = 1,
  /** Quantised inputs; outputs are computed again from them. */
  BL_SAVED_RECOMPUTE = 2,
} bl_saved_mode;

/** What shares a scale. */
typedef enum {
  /** A token of activations, a tensor of weights: the only ones that bl_runtime_check admits. */
  BL_GROUPING_USUAL = 0,
  BL_GROUPING_GROUP = 1,
  BL_GROUPING_HEAD_GROUP = 2,
} bl_grouping;

/** What recurrent state is computed in; bl_runtime_check admits the first two. */
typedef enum {
  BL_RHO_BF16 = 0,
  BL_RHO_FP32 = 1,
  BL_RHO_FP8 = 2,
  BL_RHO_INT8 = 3,
  BL_RHO_BLOCK_FP8 = 4,
  BL_RHO_SPARSE_TILE = 5,
} bl_rho_precision;

/**
 * What recurrent state is kept as; bl_runtime_check admits none and the blocks of int8, ternary and
 * binary, which bl_state computes.
 */
typedef enum {
  BL_RHO_UNCOMPRESSED = 0,
  BL_RHO_FP8_BLOCK = 1,
  BL_RHO_INT8_BLOCK = 2,
  BL_RHO_TERNARY_BLOCK = 3,
  BL_RHO_BINARY_BLOCK = 4,
  BL_RHO_BLOCK_FP = 5,
  BL_RHO_SPARSE_POSITIVE = 6,
  BL_RHO_LOWRANK_DELTA = 7,
} bl_rho_compression;

/** When recurrent state is compressed; blocks go with chunks. */
typedef enum {
  BL_RHO_CHUNK = 0,
  BL_RHO_STEP = 1,
  BL_RHO_EVAL_ONLY = 2,
} bl_rho_interval;

/** Which way a model runs. */
typedef enum {
  /** "fake_quant_reference": float products of fake-quantised values. */
  BL_RUNTIME_FAKE_QUANT_REFERENCE = 0,
  /** "packed_reference": packed weights, scalar kernels. */
  BL_RUNTIME_PACKED_REFERENCE = 1,
  /** "packed_native_inference": packed weights, vector kernels. */
  BL_RUNTIME_PACKED_NATIVE_INFERENCE = 2,
  /** "packed_native_training_forward": the same, packed anew from f32 weights. */
  BL_RUNTIME_PACKED_NATIVE_TRAINING_FORWARD = 3,
} bl_runtime;

/** Why a model runs as the reference. */
typedef enum {
  /** No reason: it does not, or was asked to. */
  BL_FALLBACK_NONE = 0,
  /** "quant_disabled" */
  BL_FALLBACK_QUANT_DISABLED = 1,
  /** "missing_packed_artifacts" */
  BL_FALLBACK_MISSING_PACKED_ARTIFACTS = 2,
  /** "native_low_bit_unavailable" */
  BL_FALLBACK_NATIVE_LOW_BIT_UNAVAILABLE = 3,
} bl_fallback;

/** Which way a projection goes. */
typedef enum {
  /**
   * x [batch, heads | 1, time, features] times weights [heads, features, latent] gives
   * y [batch, heads, time, latent]. With 1 head of x all share it.
   */
  BL_HEADS_LOWRANK = 0,
  /**
   * x [batch, heads, time, latent] times weights [heads * latent, features] gives
   * y [batch, 1, time, features]: summed over heads and latent features.
   */
  BL_HEADS_TAIL = 1,
} bl_heads_kind;

/** Which value the largest code stands for, and how values are rounded. */
typedef enum {
  /** The largest magnitude; halves to even. */
  BL_RANGE_LARGEST = 0,
  /** Twice the mean magnitude, at least 1e-8: what is larger is clipped; halves away from zero. */
  BL_RANGE_MEAN = 1,
} bl_range;

/** Which layers of a model are quantised. */
typedef enum {
  /** All but routers, embeddings, the head and norms. */
  BL_LAYERS_ALL = 0,
  /** The feed-forward weights, shared or of experts. */
  BL_LAYERS_EXPERTS = 1,
  /** Those whose name holds one of the patterns; nothing is protected. */
  BL_LAYERS_PATTERNS = 2,
} bl_layers;

/** Which fixed rule rounds, where a type has several. */
typedef enum {
  /** The type's own: ternary by the mean magnitude (BitNet), int8 by the largest of the row, ... */
  BL_RULE_USUAL = 0,
  /** Ternary: the largest magnitude of the tensor + 1e-6 (cortex). */
  BL_RULE_ABSMAX = 1,
  /** Ternary: the mean magnitude of the tensor, and 0 below it (burn_dragon). */
  BL_RULE_THRESHOLD = 2,
  /** Int8: twice the mean magnitude of the tensor; what is larger is cut (burn_dragon). */
  BL_RULE_MEAN_RANGE = 3,
  /** Signs: the mean magnitude of the tensor, not of the row (burn_dragon). */
  BL_RULE_TENSOR = 4,
} bl_rule;

/** What is known of the inputs of layers; see bl_calibrate. */
typedef struct bl_calibration bl_calibration;

/**
 * The weights of a projection of heads, packed. Calls that take it as `const` may run at the same time.
 */
typedef struct bl_heads bl_heads;

/**
 * An array of four dimensions, compressed. Any thread may make any call at any time but bl_free, a thread too
 * that waits inside a host's parallel-for of another call on the same state. Updates at one time take effect
 * one after another.
 */
typedef struct bl_state bl_state;

/** Layers and what they become. Frozen. */
typedef struct {
  /** A text that the names of the layers hold. */
  const char *pattern;
  bl_type type;
  bl_rule rule;
  /** As in bl_quantize_options. */
  int64_t group_size;
  uint32_t bases;
  /** Must be 0. */
  uint32_t reserved;
} bl_quantize_target;

/** How far bl_model_quantize is. Frozen. */
typedef struct {
  /** The layer or tensor that comes next; "" at the end. */
  const char *name;
  /** Layers and tensors that are done, and all. */
  uint64_t done;
  uint64_t total;
  /** Weights of those that are done, and of all. */
  uint64_t weights_done;
  uint64_t weights_total;
} bl_quantize_progress;

/**
 * Called on the calling thread before each layer or tensor, and once at the end; not 0: stop. It must
 * not call the library.
 */
typedef int32_t (*bl_progress_fn)(void *user, const bl_quantize_progress *progress);

/** How a model is quantised. */
typedef struct {
  uint32_t struct_size;
  /**
   * The kind of file to write, BL_CONTAINER_*; 0: that of the source. BL_CONTAINER_BURN_DRAGON: the
   * float arrays decoder_x, decoder_y and encoder of the source, by BL_QUANTIZE_FIXED rules, to
   * binary, ternary2 or int8.
   */
  uint32_t container;
  /** What the chosen layers become. BL_TYPE_AUTO: ternary. */
  bl_type type;
  /**
   * What those become whose rows are no multiple of the type's blocks. BL_TYPE_AUTO: that is
   * BL_ERROR_UNSUPPORTED.
   */
  bl_type fallback;
  /**
   * What floats of two dimensions and more become that are not quantised: f32, f16 or bf16.
   * BL_TYPE_AUTO: they stay.
   */
  bl_type rest;
  /** Which layers. */
  bl_layers layers;
  /** Which fixed rule; another than BL_RULE_USUAL only with BL_QUANTIZE_FIXED. */
  bl_rule rule;
  /** BL_QUANTIZE_*. */
  uint32_t flags;
  /** Columns of a group of int4 (0: 128) and ternary (0: the whole tensor has one scale). */
  int64_t group_size;
  /**
   * Ternary: how many code matrices are summed, 1 to 8 (0: 1); more than 4 only with
   * BL_QUANTIZE_FIXED.
   */
  uint32_t bases;
  /**
   * Columns of a block of the Walsh-Hadamard rotation that chosen layers are folded with, as
   * bl_rotate has it; 0: none. GGUF declares it as prism.hadamard.*.
   */
  uint32_t rotation_block;
  /** Seed of the rotation's signs; 0: all +1. */
  uint64_t rotation_seed;
  /** With BL_LAYERS_PATTERNS: texts that names of layers hold. */
  const char *const *patterns;
  size_t pattern_count;
  /**
   * Layers that become something else; the first whose pattern fits counts. They are quantised
   * whether they are chosen or not.
   */
  const bl_quantize_target *targets;
  size_t target_count;
  /**
   * For the metadata of the new file. Each key is there once, is not empty and does not begin with
   * "bitlinear."; in safetensors and GGUF nor with "prism.hadamard."; nor is it GGUF's own:
   * general.alignment, general.file_type, general.quantization_version,
   * craftsman.bitnet.weight_encoding, and what begins with "split.".
   */
  const bl_named_text *texts;
  size_t text_count;
  /**
   * What is known of the inputs when the call begins; layers it does not know are rounded without. NULL:
   * nothing. Any call may be made on it meanwhile.
   */
  const bl_calibration *calibration;
  /**
   * With BL_QUANTIZE_COMPENSATE: part of the mean square of the inputs that is added to each
   * column's. 0: 0.03.
   */
  float damping;
  /** Must be 0. */
  uint32_t reserved;
  /**
   * Most bytes beside what is mapped; 0: twice the largest tensor of the source and 64 MiB. A layer
   * that needs more is BL_ERROR_OUT_OF_MEMORY before anything is written. A packed file is held whole
   * besides until it is written.
   */
  uint64_t memory;
  bl_progress_fn progress;
  void *progress_user;
} bl_quantize_options;

/** What bl_model_quantize has done. */
typedef struct {
  uint32_t struct_size;
  uint32_t reserved;
  /**
   * Layers that were quantised; of these, those that became the fallback, and those whose input
   * calibration knew.
   */
  uint64_t quantized;
  uint64_t fallback;
  uint64_t calibrated;
  /** Tensors that were kept or converted. */
  uint64_t kept;
  /** Weights that were quantised. */
  uint64_t weights;
  /** Bytes of the source's tensors, and of the new file. */
  uint64_t bytes_read;
  uint64_t bytes_written;
} bl_quantize_report;

/** What calibration gathers. */
typedef struct {
  uint32_t struct_size;
  /**
   * Products of columns are gathered in blocks of so many columns: a layer of n columns takes
   * 4 n block bytes. 1: squares alone, which weight a search but cannot make up for errors.
   * 0: 2048.
   */
  uint32_t block;
  /** Most rows of x for a layer; more are not counted. 0: no bound. */
  uint64_t samples;
  /**
   * Most bytes of all sums. 0: 1 GiB. Sums of layers that get rows while bl_model_quantize uses the
   * calibration are copied, and count once.
   */
  uint64_t memory;
} bl_calibration_options;

/** What calibration knows of a layer. */
typedef struct {
  uint32_t struct_size;
  /** Columns of a block of sums. */
  uint32_t block;
  int64_t in_features;
  /** Rows of x that were counted. */
  uint64_t samples;
  /** Layers that the calibration knows. */
  uint64_t layers;
} bl_calibration_info;

/** What a layer's weights lose against a reference. */
typedef struct {
  uint32_t struct_size;
  uint32_t reserved;
  uint64_t weights;
  /** Stored bytes of the weights and their scales: of the reference and of the other. */
  uint64_t bytes_reference;
  uint64_t bytes_other;
  /** Mean and largest magnitude, and mean square, of the difference. */
  double mean_error;
  double max_error;
  double mean_square_error;
  /** Root mean square of the difference over that of the reference. */
  double relative_error;
  /** Root mean square of the other over that of the reference. */
  double rms_ratio;
  /** Of the angle between the two. */
  double cosine;
  /** bytes_reference / bytes_other. */
  double compression;
  /** Part of the other's weights that is 0. */
  double sparsity;
} bl_model_difference_info;

/** Rows of codes in a caller's memory; x is about code * scale. The scales are the caller's too. */
typedef struct {
  uint32_t struct_size;
  /**
   * fp16 (2 bytes a value, no scales), int8 (1), int4 (two to a byte, a row begins a byte) or uint8_pos
   * (1). Unset: fp16.
   */
  bl_low_bit format;
  bl_range range;
  /** BL_CODES_PER_TENSOR, BL_CODES_FIXED_SCALES. */
  uint32_t flags;
  void *codes;
  /** Bytes from row to row; 0: rows touch. */
  int64_t stride;
  /** One for each row; BL_CODES_PER_TENSOR: one. */
  float *scales;
  /** How many: 0 with fp16. */
  int64_t scale_count;
} bl_codes;

/** How two arrays differ: means and largest values, in f64. */
typedef struct {
  uint32_t struct_size;
  uint32_t reserved;
  double mean_error;
  double mean_square_error;
  double max_error;
  /** Root mean squares. */
  double rms_a;
  double rms_b;
  /** Parts of the values that are not 0. */
  double nonzero_a;
  double nonzero_b;
} bl_difference_info;

/** How a projection is made. */
typedef struct {
  uint32_t struct_size;
  bl_heads_kind kind;
  /** At least 1, as are latent and features: these have no default. */
  int64_t heads;
  /** Of each head. */
  int64_t latent;
  /** Of a token: embd of a low-rank projection, dim of a tail. */
  int64_t features;
  /**
   * int8, sign1, ternary158 or packed2. One scale for all weights, from the mean magnitude m: int8
   * max(2 m, 1e-8) / 127; the others max(m, 1e-8), and ternary is 0 where |w| is below it.
   */
  bl_low_bit weight_format;
  /** fp16 (x is taken as floats), int8, int4 or uint8_pos. Unset: fp16. */
  bl_low_bit input_format;
  bl_range input_range;
  /** BL_HEADS_*. */
  uint32_t flags;
  /** BL_HEADS_PACKED: the scale of the weights. */
  float scale;
  /** Must be 0. */
  uint32_t reserved;
  /**
   * Where bl_heads_forward runs, a number of bl_device_describe: 0, the CPU, or a GPU, with x and y in host
   * memory all the same. The weights are kept on the CPU too: gradients are computed there.
   */
  uint32_t device;
  /** Must be 0. */
  uint32_t device_flags;
} bl_heads_options;

/** The shape of a call, and what it does beside the product. */
typedef struct {
  uint32_t struct_size;
  /** BL_HEADS_RELU, BL_HEADS_QUANTIZE_OUTPUT. */
  uint32_t flags;
  /** batch * time may be 0: nothing is computed then. */
  int64_t batch;
  /** Heads of x: those of the weights, or 1 for a low-rank projection. There is no default. */
  int64_t input_heads;
  int64_t time;
  /**
   * How many of each head's latent features there are in y (low-rank) or x (tail): the first ones.
   * 0: all. Nothing is packed for it.
   */
  int64_t latent;
  /** BL_HEADS_RELU: y = max(y - threshold, 0). */
  float threshold;
  /** Must be 0. */
  uint32_t reserved;
} bl_heads_run;

/** A backward call: arrays, and how many values they have. */
typedef struct {
  uint32_t struct_size;
  /** Must be 0. */
  uint32_t reserved;
  /** The x of the forward call; or NULL, and what bl_heads_save made of it. */
  const float *x;
  int64_t x_count;
  const uint8_t *codes;
  int64_t code_bytes;
  const float *scales;
  int64_t scale_count;
  /** The gradient of y. */
  const float *dy;
  int64_t dy_count;
  /**
   * With BL_HEADS_RELU: the y that the forward call gave. NULL: it is computed again, from the same
   * codes, and is the same to the bit (but for fp16, which the forward call does not round). A decoder tail with BL_HEADS_RELU has no gradient here: it is
   * BL_ERROR_INVALID_ARGUMENT.
   */
  const float *y;
  int64_t y_count;
  /** Written: the gradient of x. NULL: not wanted. */
  float *dx;
  int64_t dx_count;
  /** Added to: the gradient of the weights, in their order. NULL: not wanted. */
  float *dw;
  int64_t dw_count;
} bl_heads_gradients;

/**
 * What a projection is, and what it has done. Times are in nanoseconds, of a context made with
 * BL_CONTEXT_PROFILE only.
 */
typedef struct {
  uint32_t struct_size;
  bl_heads_kind kind;
  int64_t heads;
  int64_t latent;
  int64_t features;
  bl_low_bit weight_format;
  bl_low_bit input_format;
  /** Of the weights. */
  float scale;
  /** Calibrated, of x; 0: none. */
  float input_scale;
  uint64_t bytes_packed;
  /**
   * Forward calls, and their time: all; and, summed over threads, staging and quantising x, products and
   * what is done to them.
   */
  uint64_t calls;
  uint64_t total_time;
  uint64_t quantize_time;
  uint64_t multiply_time;
  /** Rounding and packing weights. */
  uint64_t pack_time;
  /**
   * Calls (forward, save, backward) that found scales in x, and those that used a calibrated one.
   */
  uint64_t scale_misses;
  uint64_t scale_hits;
  /** Most bytes of codes of x, and of y, of one call. */
  uint64_t peak_code_bytes;
  uint64_t peak_output_bytes;
  /** Where bl_heads_forward runs. */
  uint32_t device;
  uint32_t reserved;
} bl_heads_info;

/** A backward call of a layer. Matrices are f32; strides in bytes, 0: rows touch. */
typedef struct {
  uint32_t struct_size;
  /** Must be 0. */
  uint32_t reserved;
  /**
   * The x of the forward call [m, in_features]; or NULL, and the codes of it that bl_quantize gave.
   */
  const float *x;
  int64_t x_stride;
  const bl_codes *codes;
  /** The gradient of y [m, out_features]. */
  const float *dy;
  int64_t dy_stride;
  /**
   * Of a layer with BL_EPILOGUE_RELU: the y that the forward call gave. NULL: it is computed again.
   */
  const float *y;
  int64_t y_stride;
  /** Written: the gradient of x. NULL: not wanted. */
  float *dx;
  int64_t dx_stride;
  /** Added to: the gradient of the weights [out_features, in_features]. NULL: not wanted. */
  float *dw;
  int64_t dw_stride;
  /** Added to: the gradient of the bias, out_features values. NULL: not wanted. */
  float *db;
} bl_layer_gradients;

/** How a state is made. */
typedef struct {
  uint32_t struct_size;
  bl_state_format format;
  /** BL_STATE_MEASURED. */
  uint32_t flags;
  /** Must be 0. */
  uint32_t reserved;
  /** Outermost first; taken flat. Each at least 1. */
  int64_t shape[4];
} bl_state_options;

/**
 * What a state is, and what packing has lost since it was made or last reset (BL_STATE_MEASURED; all 0
 * without). Averages are over calls of bl_state_update.
 */
typedef struct {
  uint32_t struct_size;
  bl_state_format format;
  int64_t shape[4];
  int64_t count;
  /** Bytes of the codes, and how many scales: what bl_state_read copies. */
  uint64_t code_bytes;
  uint64_t scale_count;
  /**
   * Bytes that it holds: twice codes and scales, so that an update that fails changes nothing. Calls at one
   * time may need these once more each, until they return.
   */
  uint64_t bytes_held;
  /** Updates that were measured. */
  uint64_t calls;
  /** Sums over calls of the root mean square before and after. */
  double total_original_rms;
  double total_restored_rms;
  /** Sum over calls of the mean |before - after|. */
  double total_mean_error;
  double max_error;
  uint64_t total_original_bytes;
  uint64_t total_packed_bytes;
  /** total_mean_error / calls; 0 where calls is 0. */
  double mean_error;
  /** total_restored_rms / total_original_rms; 0 where the latter is 0. */
  double rms_ratio;
  /** total_packed_bytes / total_original_bytes; 0 where the latter is 0. */
  double compression_ratio;
} bl_state_info;

/** Bounds on what compression may lose. 0: the default. */
typedef struct {
  uint32_t struct_size;
  /** Must be 0. */
  uint32_t reserved;
  /** Of mean_error: 0.02. */
  double max_mean_error;
  /** Of max_error: 0.05. */
  double max_error;
  /** Of rms_ratio: 0.95 to 1.05. */
  double min_rms_ratio;
  double max_rms_ratio;
  /** Of compression_ratio: 0.5. */
  double max_compression_ratio;
} bl_gate_options;

/**
 * How a model with projections x, y ([heads, embd, latent] each) and residual ([heads * latent, embd])
 * is quantised. The keys in messages are those of burn_dragon's configuration files (docs/formats.md,
 * "Names").
 */
typedef struct {
  uint32_t struct_size;
  /** BL_CONFIG_*. */
  uint32_t flags;
  /** BL_ROLE_* of the projections that are quantised. */
  uint32_t targets;
  bl_protocol protocol;
  bl_training_mode training_mode;
  bl_inference_mode inference_mode;
  /** Of y, and of residual where encoder_format does not say. Unset: fp16. */
  bl_low_bit weight_format;
  /** Of every projection that is quantised. Unset: fp16. */
  bl_low_bit activation_format;
  bl_saved_mode saved_mode;
  /** Unset: int8. */
  bl_low_bit saved_format;
  /** Weights of x. Unset: fp16. */
  bl_low_bit decoder_x_format;
  /** Weights of residual. Unset: weight_format. */
  bl_low_bit encoder_format;
  bl_grouping activation_grouping;
  bl_grouping weight_grouping;
  bl_rho_precision rho_precision;
  bl_rho_compression rho_compression;
  bl_rho_interval rho_interval;
  /** Must be 0. */
  uint32_t reserved;
} bl_runtime_config;

/** Which way a model runs. */
typedef struct {
  uint32_t struct_size;
  bl_runtime runtime;
  bl_fallback fallback;
  /** BL_CAN_*: what this CPU has, asked of the kernel tables. */
  uint32_t capabilities;
  /** 1 where any packed weights are there. */
  uint32_t packed_static_ready;
  /** Formats of the projections; unset where they are not quantised. */
  bl_low_bit x_weights;
  bl_low_bit x_activations;
  bl_low_bit y_weights;
  bl_low_bit y_activations;
  bl_low_bit residual_weights;
  bl_low_bit residual_activations;
  /** 1 where BL_CONFIG_STRICT is set. */
  uint32_t strict;
  /**
   * The words of `runtime` and `fallback`, the latter "" where there is none; and the words for
   * what the backward pass does: "disabled", "quantized_cache_only",
   * "recompute_safe_within_window". Static.
   */
  const char *runtime_name;
  const char *fallback_name;
  const char *recompute_policy;
  /** "disabled", "quantized_cache_exp", "quantized_cache_recompute_exp". Static. */
  const char *saved_mode_name;
} bl_runtime_info;

/** The size of a model and of what it is given. */
typedef struct {
  uint32_t struct_size;
  /** Must be 0. */
  uint32_t reserved;
  uint64_t batch;
  uint64_t time;
  uint64_t layers;
  uint64_t heads;
  uint64_t embd;
  /** Of all heads together. */
  uint64_t latent;
} bl_runtime_shape;

/** How much memory a model takes, in bytes. */
typedef struct {
  uint32_t struct_size;
  /** 1: what is saved is computed again within a window of the recurrent state. */
  uint32_t requires_rho_window_anchor;
  /**
   * burn_dragon's estimates, which saturate: f32 weights, packed weights, activations between
   * projections, those kept for the backward pass, recurrent state, workspaces; and their sum.
   */
  uint64_t master_weights;
  uint64_t execution_weights;
  uint64_t activation_shell;
  uint64_t saved_activations;
  uint64_t rho_state;
  uint64_t workspace;
  uint64_t total;
  /** The weights of one layer's quantised projections exactly as bl_heads_create packs them. */
  uint64_t exact_weights;
} bl_runtime_memory_info;

/** An activation that is kept for the backward pass. Frozen. */
typedef struct {
  /** "x_projection_input", "y_projection_input", "residual_tail_input". Static. */
  const char *name;
  /** Batch, heads, time, features. */
  uint64_t shape[4];
  uint64_t elements;
  /** Estimated. */
  uint64_t bytes;
} bl_saved_tensor;

/**
 * Writes a model with some of its layers quantised: GGUF (metadata kept), safetensors (cortex ternary
 * and int4, Hugging Face BitNet, floats), a packed file of its layers or burn_dragon's artifact. Layers go
 * through one after another on the context's threads. Only floats are quantised, unless BL_QUANTIZE_AGAIN says otherwise.
 * A weight that is not finite is an error that names it. A file of that name stays whole until the new
 * one is; a failure leaves it, and nothing else. report may be NULL. docs/quantize.md says which type
 * and method is best when.
 */
BL_API
bl_status bl_model_quantize(const bl_model *model,
                            const char *path,
                            const bl_quantize_options *options,
                            bl_quantize_report *report,
                            bl_error *error)
BL_NOEXCEPT;

/** Makes a calibration, which knows nothing yet. */
BL_API
bl_status bl_calibration_create(const bl_context *context,
                                const bl_calibration_options *options,
                                bl_calibration **out,
                                bl_error *error)
BL_NOEXCEPT;

/** Reads a calibration that bl_calibration_save wrote. Rows may be added to it. */
BL_API
bl_status bl_calibration_open(const bl_context *context,
                              const char *path,
                              bl_calibration **out,
                              bl_error *error)
BL_NOEXCEPT;

/** Writes what a calibration knows to a safetensors file. */
BL_API
bl_status bl_calibration_save(const bl_calibration *calibration,
                              const char *path,
                              bl_error *error)
BL_NOEXCEPT;

/**
 * Adds rows of x (f32, f16 or bf16), the input of the layer of that name (with or without ".weight"
 * behind it), to what a calibration knows of it: the sums of products of its columns, by which
 * bl_model_quantize rounds weights. (bl_layer_calibrate and bl_heads_calibrate are another thing: they fix
 * the scale of a layer's integer activations.) x is what
 * bl_forward takes after the norm and before any rotation. Where a row is not finite, or so large that
 * the sums would not be (values from about 1e19 on), nothing is added, of no row. Costs rows * columns *
 * block multiplications on the calling thread; calls from several threads wait for one another.
 */
BL_API
bl_status bl_calibrate(const bl_calibration *calibration,
                       const char *layer,
                       int64_t rows,
                       int64_t columns,
                       const void *x,
                       bl_type x_type,
                       int64_t x_stride,
                       bl_error *error)
BL_NOEXCEPT;

/**
 * What a calibration knows of the layer of that name; layer NULL: how many layers it knows.
 * BL_ERROR_NOT_FOUND for a layer it does not know.
 */
BL_API
bl_status bl_calibration_describe(const bl_calibration *calibration,
                                  const char *layer,
                                  bl_calibration_info *info,
                                  bl_error *error)
BL_NOEXCEPT;

/**
 * Compares the weights of a layer of two models, as bl_layer_read gives them; all matrices of a tensor
 * of three dimensions together. A rotation that a file declares is taken back first. Runs on the
 * reference's context.
 */
BL_API
bl_status bl_model_compare(const bl_model *reference,
                           const bl_model *other,
                           const char *layer,
                           bl_model_difference_info *info,
                           bl_error *error)
BL_NOEXCEPT;

/**
 * "fp16", "int8", "int4_exp", "uint8_pos_exp", "sign1", "ternary158", "packed2", "unset"; "unknown" for
 * values that are none. Static.
 */
BL_API
const char *bl_low_bit_name(bl_low_bit format)
BL_NOEXCEPT;

/**
 * Writes rows of x (f32, f16 or bf16) as codes, with their scales; with BL_CODES_FIXED_SCALES the scales
 * are taken as they are. What layers compute with the same format and range (and one scale a row) has
 * the same codes; under a mean range a layer with sorted columns (GPTQ with act-order) sums them in its order. A value that is not finite, or beyond f16 with fp16, is BL_ERROR_INVALID_ARGUMENT, and
 * nothing is written. Runs on the calling thread.
 */
BL_API
bl_status bl_quantize(const bl_context *context,
                      int64_t rows,
                      int64_t columns,
                      const void *x,
                      bl_type x_type,
                      int64_t x_stride,
                      const bl_codes *codes,
                      bl_error *error)
BL_NOEXCEPT;

/** Writes what codes stand for, code * scale, into y (f32, f16 or bf16). */
BL_API
bl_status bl_dequantize(const bl_context *context,
                        int64_t rows,
                        int64_t columns,
                        const bl_codes *codes,
                        void *y,
                        bl_type y_type,
                        int64_t y_stride,
                        bl_error *error)
BL_NOEXCEPT;

/**
 * y = what x becomes when it is quantised and taken back: activations (fp16, int8, int4, uint8_pos; one
 * scale a row, or with BL_CODES_PER_TENSOR one), or weights (sign1, ternary158, packed2: always one,
 * max(mean magnitude, 1e-8); range is BL_RANGE_MEAN). int8 weights are int8 with BL_RANGE_MEAN and
 * BL_CODES_PER_TENSOR. y may be x. Its gradient is that of a copy: nothing is masked (a straight-through
 * estimator), which bl_fake_quantize_backward does.
 */
BL_API
bl_status bl_fake_quantize(const bl_context *context,
                           bl_low_bit format,
                           bl_range range,
                           uint32_t flags,
                           int64_t count,
                           int64_t columns,
                           const float *x,
                           float *y,
                           bl_error *error)
BL_NOEXCEPT;

/** The gradient of bl_fake_quantize: dx += dy, unmasked. `count` values each. */
BL_API
bl_status bl_fake_quantize_backward(int64_t count,
                                    const float *dy,
                                    float *dx,
                                    bl_error *error)
BL_NOEXCEPT;

/**
 * Rounds f32 weights to a burn_dragon artifact of BL_TYPE_BINARY, BL_TYPE_TERNARY2 or BL_TYPE_INT8: its
 * bytes (1/8, 1/4 and 1 a weight, rounded up) and its one scale. flags: BL_PACK_DEQUANTIZED.
 */
BL_API
bl_status bl_pack_weights(bl_type type,
                          uint32_t flags,
                          int64_t count,
                          const float *weights,
                          uint8_t *packed,
                          size_t packed_bytes,
                          float *scale,
                          bl_error *error)
BL_NOEXCEPT;

/**
 * Writes the weights of an artifact's bytes, code * scale. The ternary code 3 is
 * BL_ERROR_INVALID_ARGUMENT, and nothing is written.
 */
BL_API
bl_status bl_unpack_weights(bl_type type,
                            const uint8_t *packed,
                            size_t packed_bytes,
                            float scale,
                            int64_t count,
                            float *weights,
                            bl_error *error)
BL_NOEXCEPT;

/**
 * How two arrays of `count` f32 values differ; all 0 for none (a and b may be NULL then). A NaN makes its
 * figures NaN.
 */
BL_API
bl_status bl_compare(int64_t count,
                     const float *a,
                     const float *b,
                     bl_difference_info *info,
                     bl_error *error)
BL_NOEXCEPT;

/**
 * Packs the weights of a projection: f32 in the order that bl_heads_kind says, rounded here; or, with
 * BL_HEADS_PACKED, codes that were rounded before. `weight_bytes` is their size. Free it with bl_free.
 */
BL_API
bl_status bl_heads_create(const bl_context *context,
                          const bl_heads_options *options,
                          const void *weights,
                          size_t weight_bytes,
                          bl_heads **out,
                          bl_error *error)
BL_NOEXCEPT;

/**
 * Rounds and packs other f32 weights, for the next step of a training. Must be the only call on the
 * handle. After a failure it is as it was. A calibrated scale of x stays.
 */
BL_API
bl_status bl_heads_update(bl_heads *heads,
                          const float *weights,
                          int64_t count,
                          bl_error *error)
BL_NOEXCEPT;

/**
 * y of x, both f32 arrays that touch in the shapes that bl_heads_kind says. Integer inputs are
 * quantised once for all heads that share them. A value of x that is not finite is
 * BL_ERROR_INVALID_ARGUMENT, and nothing is written.
 */
BL_API
bl_status bl_heads_forward(const bl_heads *heads,
                           const bl_heads_run *run,
                           const float *x,
                           int64_t x_count,
                           float *y,
                           int64_t y_count,
                           bl_error *error)
BL_NOEXCEPT;

/**
 * Keeps x for bl_heads_backward in the projection's own input format: for every token (and head of a
 * low-rank x) a row of codes, and its scale, or one scale with BL_HEADS_PER_TENSOR; fp16 has one scale
 * of 1. A tail's rows hold 32 features of every head in turn. *code_bytes and *scale_count are the sizes
 * of the arrays, and what is needed; with codes and scales NULL only that is told.
 */
BL_API
bl_status bl_heads_save(const bl_heads *heads,
                        const bl_heads_run *run,
                        const float *x,
                        int64_t x_count,
                        uint8_t *codes,
                        int64_t *code_bytes,
                        float *scales,
                        int64_t *scale_count,
                        bl_error *error)
BL_NOEXCEPT;

/**
 * Gradients of a forward call, straight through the rounding:
 *   g = dy, but with BL_HEADS_RELU 0 where y is 0;
 *   dx = g times the rounded weights (code * scale), summed over heads that share x;
 *   dw += the rounded x (code * scale), transposed, times g.
 * Values that were clipped pass gradients too, and scales have none. `run` is that of the forward call
 * (quantised outputs pass g as it is). The same bits for any number of threads; another CPU may
 * differ in the last ones. Everything is checked before anything is written; after BL_ERROR_OUT_OF_MEMORY
 * dx and dw may be written in part.
 */
BL_API
bl_status bl_heads_backward(const bl_heads *heads,
                            const bl_heads_run *run,
                            const bl_heads_gradients *gradients,
                            bl_error *error)
BL_NOEXCEPT;

/**
 * Fixes the scale of the inputs: finds one for all of x (`count` f32 values) and uses it in the calls that
 * follow, in place of what they would find; x NULL: no longer. It is about activations in a running
 * projection, as is bl_layer_calibrate; bl_calibrate gathers what bl_model_quantize rounds weights by.
 * May run beside other calls, which use the old scale or the new one.
 */
BL_API
bl_status bl_heads_calibrate(const bl_heads *heads,
                             const float *x,
                             int64_t count,
                             bl_error *error)
BL_NOEXCEPT;

/** Shape, size and counters of a projection. reset != 0 zeroes the counters after the copy. */
BL_API
bl_status bl_heads_describe(const bl_heads *heads,
                            bl_heads_info *info,
                            uint32_t reset,
                            bl_error *error)
BL_NOEXCEPT;

/**
 * Gradients of bl_forward on m rows, straight through the rounding of weights and activations:
 *   g = dy, but of a layer with BL_EPILOGUE_RELU 0 where y is 0;
 *   dx = g W, with the rounded weights;   dw += g^T x, with the rounded x;   db += the rows of g.
 * Values that were clipped pass gradients too, and scales have none. For layers without norm, rotation
 * and other epilogues. Codes in place of x are of the layer's own activations: the same format and range,
 * and one scale a row (or fixed scales). The same bits for any number of threads; another CPU may
 * differ in the last ones. Everything is checked before anything is written; a value that is not finite is
 * BL_ERROR_INVALID_ARGUMENT.
 */
BL_API
bl_status bl_layer_backward(const bl_layer *layer,
                            int64_t m,
                            const bl_layer_gradients *gradients,
                            bl_error *error)
BL_NOEXCEPT;

/**
 * Fixes the scale of the inputs: finds one for all of x [m, in_features] and uses it in the calls that
 * follow, in place of the scales that the layer's rule finds; x NULL: no longer. It changes no weight, and
 * has nothing to do with bl_calibrate, which gathers what bl_model_quantize rounds weights by. bl_save
 * writes the scale with the layer. For integer activations of layers without norm and rotation. Must be
 * the only call on the layer.
 */
BL_API
bl_status bl_layer_calibrate(bl_layer *layer,
                             int64_t m,
                             const void *x,
                             bl_type x_type,
                             int64_t x_stride,
                             bl_error *error)
BL_NOEXCEPT;

/**
 * Makes a state of zeros: a recurrent state of, say, [batch, heads, latent, embd], kept in a quarter of
 * its memory or less. Free it with bl_free.
 */
BL_API
bl_status bl_state_create(const bl_context *context,
                          const bl_state_options *options,
                          bl_state **out,
                          bl_error *error)
BL_NOEXCEPT;

/**
 * state = factor * state + values, packed again in place; factor 0: state = values. `count` is the
 * state's. Every operation is one f32 rounding. A value, or a sum, that is not finite is refused, and
 * nothing changes.
 */
BL_API
bl_status bl_state_update(const bl_state *state,
                          float factor,
                          const float *values,
                          int64_t count,
                          bl_error *error)
BL_NOEXCEPT;

/** Writes the state's values, code * scale. `count` is the state's. */
BL_API
bl_status bl_state_unpack(const bl_state *state,
                          float *values,
                          int64_t count,
                          bl_error *error)
BL_NOEXCEPT;

/**
 * Copies codes and scales out: what bl_state_write takes back. Sizes are those of bl_state_describe.
 */
BL_API
bl_status bl_state_read(const bl_state *state,
                        uint8_t *codes,
                        size_t code_bytes,
                        float *scales,
                        size_t scale_count,
                        bl_error *error)
BL_NOEXCEPT;

/**
 * Takes codes and scales of a state of the same format and shape. Scales that are not finite and the
 * ternary code 3 are refused; nothing changes then.
 */
BL_API
bl_status bl_state_write(const bl_state *state,
                         const uint8_t *codes,
                         size_t code_bytes,
                         const float *scales,
                         size_t scale_count,
                         bl_error *error)
BL_NOEXCEPT;

/** Shape, size and losses of a state. reset != 0 begins to measure anew. */
BL_API
bl_status bl_state_describe(const bl_state *state,
                            bl_state_info *info,
                            uint32_t reset,
                            bl_error *error)
BL_NOEXCEPT;

/**
 * *passes = 1 where every figure of the state's losses is known and within its bounds, else 0. `options`
 * may be NULL.
 */
BL_API
bl_status bl_state_gate(const bl_state *state,
                        const bl_gate_options *options,
                        uint32_t *passes,
                        bl_error *error)
BL_NOEXCEPT;

/**
 * Whether a configuration is consistent: else BL_ERROR_INVALID_ARGUMENT, and the message names the key
 * that is wrong (model.quant.protocol, model.rho.compression and so on).
 */
BL_API
bl_status bl_runtime_check(const bl_runtime_config *config,
                           bl_error *error)
BL_NOEXCEPT;

/**
 * Which way a model of that configuration runs on this CPU, and why not a better one. `artifacts`:
 * BL_ROLE_* of the projections whose packed weights are there; flags: BL_PLAN_TRAINING. A
 * configuration that bl_runtime_check refuses is refused.
 */
BL_API
bl_status bl_runtime_plan(const bl_context *context,
                          const bl_runtime_config *config,
                          uint32_t artifacts,
                          uint32_t flags,
                          bl_runtime_info *info,
                          bl_error *error)
BL_NOEXCEPT;

/**
 * The memory that a model of that configuration and shape takes: burn_dragon's estimates, and beside
 * them the exact bytes of the weights. All zero where the configuration quantises nothing.
 */
BL_API
bl_status bl_runtime_memory(const bl_runtime_config *config,
                            const bl_runtime_shape *shape,
                            bl_runtime_memory_info *info,
                            bl_error *error)
BL_NOEXCEPT;

/**
 * What is kept for the backward pass: *count tensors, in the order x, y, residual; none where saving is
 * disabled. With tensors NULL and capacity 0 only the count is told; a capacity that is too small is
 * BL_ERROR_BUFFER_TOO_SMALL.
 */
BL_API
bl_status bl_runtime_saved(const bl_runtime_config *config,
                           const bl_runtime_shape *shape,
                           bl_saved_tensor *tensors,
                           size_t capacity,
                           size_t *count,
                           bl_error *error)
BL_NOEXCEPT;

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* BITLINEAR_H */
