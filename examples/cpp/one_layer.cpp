// one_layer FILE LAYER: y = x W^T + b for one layer of a GGUF or safetensors file, x all ones.
#include <bitlinear.hpp>

#include <algorithm>
#include <cstdio>
#include <vector>

static int failed(const char *what, const bl::error &why) {
  std::fprintf(stderr, "%s: %s (%s)\n", what, why.message, bl_status_name(why.status));
  return 1;
}

int main(int count, char **words) {
  if (count != 3) return std::fputs("usage: one_layer FILE LAYER\n", stderr), 2;

  auto model = bl::model::load(words[1]);
  if (!model) return failed(words[1], model.error());
  auto layer = model->open(words[2]);
  if (!layer) return failed(words[2], layer.error());
  auto plan = layer->plan(1);
  if (!plan) return failed("plan", plan.error());

  std::vector<float> x(static_cast<std::size_t>(layer->in_features()), 1.0f);
  std::vector<float> y(static_cast<std::size_t>(layer->out_features()));
  if (auto done = layer->forward(x, y); !done) return failed("forward", done.error());

  std::printf("%ld x %ld, %s\ny =", static_cast<long>(layer->out_features()),
              static_cast<long>(layer->in_features()), plan->kernel);
  for (std::size_t o = 0; o < std::min<std::size_t>(8, y.size()); o++) std::printf(" %g", static_cast<double>(y[o]));
  std::printf("\n");
}
