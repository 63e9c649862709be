// The example's model: its gradients against differences of its loss along random directions, and its
// repeatability.
#include <train_moe/experiment.hpp>

#include <doctest/doctest.h>

#include <fstream>

namespace test_training {
using namespace train;

namespace {

/// A text that is there on every machine.
std::filesystem::path sample_text() {
  const auto path = std::filesystem::temp_directory_path() / "mpi_router_training_sample.txt";
  std::ofstream out(path, std::ios::binary);
  random_source random(5);
  for (int word = 0; word < 40000; ++word) {
    out << (random.below(3) == 0   ? "power "
            : random.below(2) == 0 ? "manifold "
                                   : "row ")
        << (word % 7 == 0 ? ".\n" : "");
  }
  return path;
}

model_sizes small_sizes() {
  model_sizes sizes;
  sizes.moe = {.experts = 4, .ffn = 12, .hidden = 16, .top_k = 2};
  sizes.length = 16;
  return sizes;
}

}  // namespace

TEST_CASE("gradients of the whole model agree with differences of its loss, for every router") {
  const corpus text(sample_text());
  random_source random(1);
  const batch data = text.sample(random, 2, 16);
  constexpr float coefficient = 0.05F;
  for (const router_kind kind : all_routers) {
    CAPTURE(to_string(kind));
    model_sizes sizes = small_sizes();
    sizes.moe.top_k = sizes.moe.experts;  // every expert is chosen: the loss has no jumps
    model m(sizes, kind, 4, 3);
    const auto loss = [&] {
      const float entropy = m.forward(data);
      return static_cast<double>(entropy) + static_cast<double>(coefficient * m.balance());
    };
    for (parameter* p : m.parameters()) p->value *= 1.5F;  // away from the flat start
    loss();
    m.backward(data, coefficient);
    for (parameter* p : m.parameters()) {
      CAPTURE(p->name);
      const double norm = static_cast<double>(p->gradient.norm());
      REQUIRE(norm > 0);
      // Along its own gradient the loss rises by its norm.
      const matrix direction = p->gradient / static_cast<float>(norm);
      const matrix at = p->value;
      double best = 1;
      for (const float h : {0.3F, 0.1F, 3e-2F, 1e-2F, 3e-3F, 1e-3F}) {
        p->value = at + h * direction;
        const double up = loss();
        p->value = at - h * direction;
        const double slope = (up - loss()) / (2 * static_cast<double>(h));
        best = std::min(best, std::abs(slope / norm - 1));
      }
      p->value = at;
      CHECK(best < 0.02);  // differences of a float loss carry no more
    }
  }
}

TEST_CASE("a run repeats itself bit for bit, and learns") {
  const corpus text(sample_text());
  settings s;
  s.sizes = small_sizes();
  s.steps = 100;
  s.sequences = 4;
  s.every = 50;
  int calls = 0;
  const auto once = train_one(text, s, router_kind::mpi, 1, [&calls] { ++calls; });
  const auto again = train_one(text, s, router_kind::mpi, 1, [] {});
  const auto other = train_one(text, s, router_kind::mpi, 2, [] {});
  CHECK(calls == 100);
  REQUIRE(once.trace.size() == 2);
  for (std::size_t i = 0; i < 2; ++i) {
    CHECK(once.trace[i].test_loss == again.trace[i].test_loss);
    CHECK(once.trace[i].alignment.cosine.mean == again.trace[i].alignment.cosine.mean);
    CHECK(once.trace[i].test_loss != other.trace[i].test_loss);
  }
  CHECK(once.trace[1].test_loss < 3);
}

}  // namespace test_training
