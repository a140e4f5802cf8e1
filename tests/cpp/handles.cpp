// handles FILE TENSOR: bitlinear.hpp's owners, results and checks. Prints nothing; failures end it.
#include <bitlinear.hpp>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

#define CHECK(what) \
  ((what) ? (void)0 : (std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #what), std::exit(1)))

static_assert(!std::is_copy_constructible_v<bl::layer> && !std::is_copy_assignable_v<bl::model>);
static_assert(std::is_nothrow_move_constructible_v<bl::layer> && std::is_nothrow_move_assignable_v<bl::context>);
static_assert(sizeof(bl::model) == sizeof(void *), "an owner is a pointer");
static_assert(!std::is_convertible_v<bl::model, bool>);

// A handle is freed once, by its last owner.
static void owners(const char *file) {
  auto context = bl::context::create();
  CHECK(context);
  auto handles = [&] { return context->memory()->handles; };
  CHECK(handles() == 0);
  {
    auto model = bl::model::load(file, context->get());
    CHECK(model && handles() == 1);
    bl::model moved = std::move(*model);
    CHECK(handles() == 1 && !*model && moved);
    bl::model &self = moved;
    moved = std::move(self);
    CHECK(moved && handles() == 1);
    auto second = bl::model::load(file, context->get());
    CHECK(second && handles() == 2);
    moved = std::move(*second); // frees the first
    CHECK(handles() == 1);
    bl_model *raw = moved.release();
    CHECK(!moved && handles() == 1);
    bl_free(raw);
    CHECK(handles() == 0);
  }
  CHECK(handles() == 0);
}

static void failures(const char *file) {
  auto none = bl::model::load("/nowhere");
  CHECK(!none && none.status() == BL_ERROR_IO && std::strstr(none.error().message, "/nowhere") != nullptr);
  auto model = bl::model::load(file);
  CHECK(model);
  CHECK(model->open("none").status() == BL_ERROR_NOT_FOUND);
  CHECK(model->tensor("none").status() == BL_ERROR_NOT_FOUND);
  CHECK(model->tensor(nullptr).status() == BL_ERROR_INVALID_ARGUMENT);
  CHECK(model->meta(nullptr).status() == BL_ERROR_INVALID_ARGUMENT);
  CHECK(model->tensor(std::int64_t{1} << 40).status() == BL_ERROR_NOT_FOUND);
  CHECK(bl::model{}.describe().status() == BL_ERROR_INVALID_HANDLE);
  CHECK(bl::context::create(0xfffffffe).status() == BL_ERROR_INVALID_ARGUMENT);
  std::array<std::byte, 4> bytes{};
  CHECK(bl::model::load(bytes).status() == BL_ERROR_BAD_FILE);
}

static void forwards(const char *file, const char *tensor) {
  bl::layer layer;
  CHECK(layer.in_features() == 0);
  {
    auto model = bl::model::load(file);
    CHECK(model && model->describe()->tensors > 0 && model->meta("general.architecture")->string != nullptr);
    layer = std::move(*model->open(tensor));
  } // the layer outlives its model
  const auto in = static_cast<std::size_t>(layer.in_features());
  const auto out = static_cast<std::size_t>(layer.out_features());
  CHECK(in == 512 && out == 64 && layer.describe()->in_features == 512);

  std::vector<float> x(3 * in, 0.5f), y(3 * out, -1.0f), z(3 * out);
  CHECK(layer.forward(x, y));
  std::vector<std::byte> workspace(static_cast<std::size_t>(layer.plan(3)->workspace_size));
  CHECK(layer.forward(x, z, workspace));
  CHECK(y == z);
  CHECK(layer.forward(bl::matrix<float>{x.data(), 1, 512}, bl::matrix<float>{z.data(), 1, 64}));
  std::vector<bl::bf16> half(in, bl::bf16{0x3f00});
  CHECK(layer.forward(bl::matrix<const bl::bf16>{half.data(), 1, 512}, bl::matrix<float>{z.data(), 1, 64}));
  CHECK(y == z);
  std::vector<float> w(2 * in);
  CHECK(layer.read(62, bl::matrix<float>{w.data(), 2, 512}));

  // To a device and back; there is no GPU with that number.
  auto copied = layer.copy(0);
  CHECK(copied && copied->in_features() == 512 && copied->forward(x, z) && y == z);
  CHECK(!layer.copy(1000) && !bl::layer{}.copy(0));

  // Shapes that do not fit are refused before C sees them: a sanitizer would see a write too far.
  std::vector<float> small(out - 1);
  CHECK(layer.forward(bl::span<const float>(x.data(), in), small).status() == BL_ERROR_INVALID_ARGUMENT);
  CHECK(layer.forward(bl::span<const float>(x.data(), in - 1), y).status() == BL_ERROR_INVALID_ARGUMENT);
  CHECK(!layer.forward(bl::matrix<float>{x.data(), 2, 512}, bl::matrix<float>{y.data(), 1, 64}));
  CHECK(!layer.forward(bl::matrix<float>{x.data(), 1, 511}, bl::matrix<float>{y.data(), 1, 64}));
  CHECK(!layer.forward(bl::matrix<float>{x.data(), 1, 512}, bl::matrix<float>{y.data(), 1, 63}));
  CHECK(!layer.read(0, bl::matrix<float>{w.data(), 2, 511}));
  CHECK(layer.read(63, bl::matrix<float>{w.data(), 2, 512}).status() == BL_ERROR_INVALID_ARGUMENT);
  CHECK(!bl::layer{}.forward(x, y));
}

int main(int count, char **words) {
  CHECK(count == 3);
  owners(words[1]);
  failures(words[1]);
  forwards(words[1], words[2]);
}
