// bitlinear.hpp: the C interface with owners, C++17, header only. No exceptions are thrown and none are
// needed; nothing is allocated here. What each call does and when it fails is said in bitlinear.h.
//
//   auto model = bl::model::load("model.gguf");
//   if (!model) return fail(model.error().message);
//   auto layer = model->open("blk.0.ffn_up");  // a layer; "blk.0.ffn_up.weight" would be the matrix alone
//   if (!layer) return fail(layer.error().message);
//   std::vector<float> x(layer->in_features(), 1.0f), y(layer->out_features());
//   if (auto done = layer->forward(x, y); !done) return fail(done.error().message);
#ifndef BITLINEAR_HPP
#define BITLINEAR_HPP

#include <bitlinear.h>

#include <cassert>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <type_traits>
#include <utility>
#include <variant>

namespace bl {

/// A struct that begins with struct_size: all defaults. `auto o = bl::make<bl_context_options>();`
template <class T>
T make() noexcept {
  T value{};
  value.struct_size = static_cast<std::uint32_t>(sizeof value);
  return value;
}

/// What failed: status and message, by value.
using error = bl_error;

/// A value, or why there is none.
template <class T>
class [[nodiscard]] result {
 public:
  result(T value) noexcept(std::is_nothrow_move_constructible_v<T>)
      : state_(std::in_place_index<0>, std::move(value)) {}
  result(const bl_error &why) noexcept : state_(std::in_place_index<1>, why) {}

  explicit operator bool() const noexcept { return state_.index() == 0; }
  /// The value. Only where there is one.
  T &operator*() & noexcept { return *checked(); }
  const T &operator*() const & noexcept { return *const_cast<result *>(this)->checked(); }
  T &&operator*() && noexcept { return std::move(*checked()); }
  T *operator->() noexcept { return checked(); }
  const T *operator->() const noexcept { return const_cast<result *>(this)->checked(); }
  /// Why there is no value. Only where there is none.
  const bl_error &error() const noexcept {
    const bl_error *why = std::get_if<1>(&state_);
    assert(why != nullptr);
    return *why;
  }
  bl_status status() const noexcept { return *this ? BL_OK : error().status; }

 private:
  T *checked() noexcept {
    T *value = std::get_if<0>(&state_);
    assert(value != nullptr);
    return value;
  }
  std::variant<T, bl_error> state_;
};

/// Done, or why not.
template <>
class [[nodiscard]] result<void> {
 public:
  result() noexcept : why_{} {}
  result(const bl_error &why) noexcept : why_(why) {}
  explicit operator bool() const noexcept { return why_.status == BL_OK; }
  const bl_error &error() const noexcept { return why_; }
  bl_status status() const noexcept { return why_.status; }

 private:
  bl_error why_;
};

/// Elements that follow one another: of a vector, an array, a std::span, or by address and count.
template <class T>
class span {
 public:
  constexpr span() noexcept = default;
  constexpr span(T *data, std::size_t size) noexcept : data_(data), size_(size) {}
  template <std::size_t N>
  constexpr span(T (&array)[N]) noexcept : data_(array), size_(N) {}
  template <class C, class = std::enable_if_t<
                         std::is_convertible_v<decltype(std::declval<C &>().data()), T *> &&
                         !std::is_same_v<std::remove_cv_t<std::remove_reference_t<C>>, span>>>
  constexpr span(C &&container) noexcept : data_(container.data()), size_(container.size()) {}
  constexpr T *data() const noexcept { return data_; }
  constexpr std::size_t size() const noexcept { return size_; }

 private:
  T *data_ = nullptr;
  std::size_t size_ = 0;
};

/// The bits of an IEEE half and of a bfloat16.
struct f16 {
  std::uint16_t bits;
};
struct bf16 {
  std::uint16_t bits;
};

/// The bl_type of an element.
template <class T>
inline constexpr bl_type type_of = BL_TYPE_AUTO;
template <>
inline constexpr bl_type type_of<float> = BL_TYPE_F32;
template <>
inline constexpr bl_type type_of<f16> = BL_TYPE_F16;
template <>
inline constexpr bl_type type_of<bf16> = BL_TYPE_BF16;

/// Rows of a caller's memory. `stride` is in bytes from row to row; 0 says that rows touch.
template <class T>
struct matrix {
  T *data = nullptr;
  std::int64_t rows = 0;
  std::int64_t columns = 0;
  std::int64_t stride = 0;
};

/// Owner of one handle: moved, never copied, freed at its end.
template <class H>
class handle {
 public:
  handle() noexcept = default;
  explicit handle(H *raw) noexcept : raw_(raw) {}
  handle(handle &&other) noexcept : raw_(other.release()) {}
  handle &operator=(handle &&other) noexcept {
    if (this != &other) {
      bl_free(raw_);
      raw_ = other.release();
    }
    return *this;
  }
  handle(const handle &) = delete;
  handle &operator=(const handle &) = delete;
  ~handle() { bl_free(raw_); }

  explicit operator bool() const noexcept { return raw_ != nullptr; }
  /// For calls of bitlinear.h that have no method here. Still owned.
  H *get() const noexcept { return raw_; }
  /// Gives the handle away: the caller frees it.
  H *release() noexcept { return std::exchange(raw_, nullptr); }

 private:
  H *raw_ = nullptr;
};

namespace detail {
inline bl_error refusal(const char *text) noexcept {
  bl_error why{};
  why.status = BL_ERROR_INVALID_ARGUMENT;
  std::snprintf(why.message, sizeof why.message, "%s", text);
  return why;
}

/// Calls a function that fills an info struct.
template <class Info, class F>
result<Info> described(F &&call) noexcept {
  Info info = make<Info>();
  bl_error why{};
  if (call(&info, &why) != BL_OK) return why;
  return info;
}
}  // namespace detail

/// Threads and settings. Where a call takes one, nullptr is the default context: serial and silent.
class context : public handle<bl_context> {
 public:
  using handle::handle;
  static result<context> create(const bl_context_options &options) noexcept {
    bl_context *raw = nullptr;
    bl_error why{};
    if (bl_context_create(&options, &raw, &why) != BL_OK) return why;
    return context(raw);
  }
  /// Of that many threads; BL_THREADS_ALL: as many as this process may use.
  static result<context> create(std::uint32_t threads = 1) noexcept {
    auto options = make<bl_context_options>();
    options.threads = threads;
    return create(options);
  }
  result<bl_memory_info> memory() const noexcept {
    return detail::described<bl_memory_info>(
        [this](bl_memory_info *i, bl_error *e) { return bl_memory(get(), i, e); });
  }
};

/// One linear layer, y = x W^T + b. Any number of threads may run it at a time.
class layer : public handle<bl_layer> {
 public:
  layer() noexcept = default;

  /// Takes a bl_layer that bitlinear.h made.
  static result<layer> adopt(bl_layer *raw) noexcept {
    layer made(raw);
    auto info = made.describe();
    if (!info) return info.error();
    made.in_ = info->in_features;
    made.out_ = info->out_features;
    return made;
  }

  std::int64_t in_features() const noexcept { return in_; }
  std::int64_t out_features() const noexcept { return out_; }
  result<bl_layer_info> describe() const noexcept {
    return detail::described<bl_layer_info>(
        [this](bl_layer_info *i, bl_error *e) { return bl_layer_describe(get(), i, e); });
  }
  result<bl_plan_info> plan(std::int64_t rows, bl_type x_type = BL_TYPE_F32) const noexcept {
    return detail::described<bl_plan_info>([&](bl_plan_info *i, bl_error *e) {
      return bl_plan(get(), BL_OP_FORWARD, rows, x_type, i, e);
    });
  }

  /// y = x W^T + b. The shapes are checked here, since C cannot see them. A workspace of plan()'s size
  /// makes the call free of allocations.
  template <class X, class Y>
  result<void> forward(matrix<X> x, matrix<Y> y, span<std::byte> workspace = {}) const noexcept {
    constexpr bl_type x_type = type_of<std::remove_const_t<X>>, y_type = type_of<Y>;
    static_assert(x_type != BL_TYPE_AUTO && y_type != BL_TYPE_AUTO, "float, bl::f16 or bl::bf16");
    if (x.rows != y.rows || x.columns != in_ || y.columns != out_)
      return detail::refusal("forward: x is not [m, in_features] or y not [m, out_features]");
    auto options = make<bl_run_options>();
    options.workspace = workspace.data();
    options.workspace_size = workspace.size();
    bl_error why{};
    if (bl_forward(get(), x.rows, x.data, x_type, x.stride, y.data, y_type, y.stride, &options, &why) != BL_OK)
      return why;
    return {};
  }
  /// One row, or as many as x and y hold.
  result<void> forward(span<const float> x, span<float> y, span<std::byte> workspace = {}) const noexcept {
    if (in_ == 0 || out_ == 0 || x.size() % static_cast<std::size_t>(in_) != 0)
      return detail::refusal("forward: x is not whole rows of in_features");
    const auto rows = static_cast<std::int64_t>(x.size()) / in_;
    if (y.size() != static_cast<std::size_t>(rows) * static_cast<std::size_t>(out_))
      return detail::refusal("forward: y does not have a row of out_features for each row of x");
    return forward(matrix<const float>{x.data(), rows, in_}, matrix<float>{y.data(), rows, out_}, workspace);
  }

  /// The same layer on a device, as bl_device_describe counts; 0 is the CPU.
  result<layer> copy(std::uint32_t device) const noexcept {
    bl_layer *raw = nullptr;
    bl_error why{};
    if (bl_layer_copy(get(), device, nullptr, nullptr, &raw, &why) != BL_OK) return why;
    return adopt(raw);
  }

  /// Dequantised weights: as many rows as `rows` has, from first_row on.
  template <class T>
  result<void> read(std::int64_t first_row, matrix<T> rows) const noexcept {
    static_assert(type_of<T> != BL_TYPE_AUTO, "float, bl::f16 or bl::bf16");
    if (rows.columns != in_) return detail::refusal("read: the rows do not have in_features columns");
    bl_error why{};
    if (bl_layer_read(get(), first_row, rows.rows, rows.data, type_of<T>, rows.stride, &why) != BL_OK)
      return why;
    return {};
  }

 private:
  explicit layer(bl_layer *raw) noexcept : handle(raw) {}
  std::int64_t in_ = 0, out_ = 0;
};

/// An opened file. Names and bytes that it tells live as long as it does; layers live on their own.
class model : public handle<bl_model> {
 public:
  using handle::handle;
  static result<model> load(const char *path, const bl_context *context = nullptr,
                            std::uint32_t flags = 0) noexcept {
    auto options = make<bl_load_options>();
    options.flags = flags;
    bl_model *raw = nullptr;
    bl_error why{};
    if (bl_load(context, path, &options, &raw, &why) != BL_OK) return why;
    return model(raw);
  }
  /// From bytes, which are copied; with BL_LOAD_BORROW they must outlive the model and its layers.
  static result<model> load(span<const std::byte> bytes, const bl_context *context = nullptr,
                            std::uint32_t flags = 0) noexcept {
    auto options = make<bl_load_options>();
    options.flags = flags;
    bl_model *raw = nullptr;
    bl_error why{};
    if (bl_load_memory(context, bytes.data(), bytes.size(), &options, &raw, &why) != BL_OK) return why;
    return model(raw);
  }
  result<bl_model_info> describe() const noexcept {
    return detail::described<bl_model_info>(
        [this](bl_model_info *i, bl_error *e) { return bl_model_describe(get(), i, e); });
  }
  result<bl_tensor_info> tensor(std::int64_t index) const noexcept {
    return detail::described<bl_tensor_info>(
        [&](bl_tensor_info *i, bl_error *e) { return bl_model_tensor(get(), nullptr, index, i, e); });
  }
  result<bl_tensor_info> tensor(const char *name) const noexcept {
    if (name == nullptr) return detail::refusal("tensor: the name is NULL");
    return detail::described<bl_tensor_info>(
        [&](bl_tensor_info *i, bl_error *e) { return bl_model_tensor(get(), name, 0, i, e); });
  }
  result<bl_meta_info> meta(const char *key) const noexcept {
    if (key == nullptr) return detail::refusal("meta: the key is NULL");
    return detail::described<bl_meta_info>(
        [&](bl_meta_info *i, bl_error *e) { return bl_model_meta(get(), key, 0, i, e); });
  }

  /// A layer by its name, "blk.0.ffn_up": weights, scale and bias; by a tensor's name, "blk.0.ffn_up.weight", the
  /// matrix alone. options.bias, where there is one, has out_features values and is copied.
  result<layer> open(const char *name, const bl_layer_options &options) const noexcept {
    bl_layer *raw = nullptr;
    bl_error why{};
    if (bl_layer_open(get(), name, &options, &raw, &why) != BL_OK) return why;
    return layer::adopt(raw);
  }
  result<layer> open(const char *name) const noexcept {
    return open(name, make<bl_layer_options>());
  }
};

}  // namespace bl

#endif
