// oneDNN's inner product, the way its users run it: weights in the layout that the primitive asks for
// ("any"), one primitive for a number of rows of x. x comes in the primitive's own type: quantising it is
// the caller's work there and is not measured. Scales are applied to the f32 result.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <oneapi/dnnl/dnnl.hpp>
#include <string>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#else
extern "C" void omp_set_num_threads(int);
#endif

using namespace dnnl;
using dt = memory::data_type;
using tag = memory::format_tag;

namespace {
struct ring {
  engine cpu{engine::kind::cpu, 0};
  stream order{cpu};
  memory::dim n, k, m = 0;
  dt x_type, w_type;
  int threads;
  std::vector<memory> plain;   // the weights as they came, until the first primitive
  std::vector<memory> weights; // in the primitive's layout
  memory x, y;
  std::unique_ptr<inner_product_forward> product;
  std::string implementation;
};

// x or weights from f32; s8 = round(v * factor), u8 the same + 128.
void fill(memory &to, const float *from, size_t count, dt type, float factor) {
  void *data = to.get_data_handle();
  for (size_t i = 0; i < count; i++) {
    if (type == dt::f32) {
      static_cast<float *>(data)[i] = from[i];
    } else if (type == dt::bf16) {
      uint32_t bits;
      std::memcpy(&bits, from + i, 4);
      bits += 0x7fff + (bits >> 16 & 1);
      static_cast<uint16_t *>(data)[i] = static_cast<uint16_t>(bits >> 16);
    } else {
      const int code = static_cast<int>(std::nearbyint(from[i] * factor));
      if (type == dt::s8) static_cast<int8_t *>(data)[i] = static_cast<int8_t>(code);
      else static_cast<uint8_t *>(data)[i] = static_cast<uint8_t>(code + 128);
    }
  }
}

float largest(const float *v, size_t count) {
  float a = 0;
  for (size_t i = 0; i < count; i++) a = std::fmax(a, std::fabs(v[i]));
  return a;
}
} // namespace

extern "C" {

// kind: 0 u8 x s8, 1 s8 x s8, 2 bf16, 3 f32. weights: f32 [n, k]. NULL: not supported on this CPU.
void *onednn_open(int kind, long n, long k, long copies, int threads, const float *weights, long rows) {
  try {
    auto r = std::make_unique<ring>();
    r->n = n, r->k = k, r->threads = threads;
    const dt types[4][2] = {{dt::u8, dt::s8}, {dt::s8, dt::s8}, {dt::bf16, dt::bf16}, {dt::f32, dt::f32}};
    r->x_type = types[kind][0], r->w_type = types[kind][1];
    const float factor = 127 / largest(weights, static_cast<size_t>(rows * k));
    std::vector<float> all(static_cast<size_t>(n * k));
    for (long i = 0; i < n; i++) std::memcpy(&all[i * k], weights + i % rows * k, sizeof(float) * k);
    for (long i = 0; i < copies; i++) {
      memory w({{n, k}, r->w_type, tag::ab}, r->cpu);
      fill(w, all.data(), all.size(), r->w_type, factor);
      r->plain.push_back(w);
    }
    return r.release();
  } catch (const std::exception &) {
    return nullptr;
  }
}

// Makes the primitive for m rows of x (f32). y = scale * (x_codes - shift) w_codes. 0: not supported.
int onednn_prepare(void *handle, long m, const float *x, float *scale_of_x) {
  ring *r = static_cast<ring *>(handle);
  omp_set_num_threads(r->threads);
  try {
    r->m = m;
    const memory::desc xd({m, r->k}, r->x_type, tag::ab), wd({r->n, r->k}, r->w_type, tag::any),
        yd({m, r->n}, dt::f32, tag::ab);
    const inner_product_forward::primitive_desc pd({prop_kind::forward_inference, xd, wd, yd}, r->cpu);
    r->implementation = pd.impl_info_str();
    r->product = std::make_unique<inner_product_forward>(pd);
    std::vector<memory> &from = r->weights.empty() ? r->plain : r->weights;
    std::vector<memory> packed;
    for (memory &w : from) {
      memory p(pd.weights_desc(), r->cpu);
      reorder(w, p).execute(r->order, w, p);
      r->order.wait();
      packed.push_back(p);
    }
    r->weights = packed;
    r->plain.clear();
    r->x = memory(xd, r->cpu), r->y = memory(yd, r->cpu);
    const float a = largest(x, static_cast<size_t>(m * r->k));
    *scale_of_x = a / 127;
    fill(r->x, x, static_cast<size_t>(m * r->k), r->x_type, 127 / a);
    return 1;
  } catch (const std::exception &) {
    return 0;
  }
}

void onednn_run(void *handle, long matrix) {
  ring *r = static_cast<ring *>(handle);
  r->product->execute(r->order, {{DNNL_ARG_SRC, r->x}, {DNNL_ARG_WEIGHTS, r->weights[matrix]}, {DNNL_ARG_DST, r->y}});
  r->order.wait();
}

const float *onednn_output(void *handle) {
  return static_cast<const float *>(static_cast<ring *>(handle)->y.get_data_handle());
}

const char *onednn_implementation(void *handle) {
  return static_cast<ring *>(handle)->implementation.c_str();
}

void onednn_close(void *handle) { delete static_cast<ring *>(handle); }

void onednn_version(int *v) {
  const dnnl_version_t *version = dnnl_version();
  v[0] = version->major, v[1] = version->minor, v[2] = version->patch;
}
}
