// recondition changes the router rows, and nothing else.
#include "program.hpp"

#include <mpi_router/manifold/power_iteration.hpp>

#include <cmath>

namespace test_recondition {
using namespace tool_test;

namespace {

using mpi_router::bf16;
using mpi_router::checkpoint;
using mpi_router::stored_tensor;

Eigen::MatrixXd gate_of(const layer_data& l, index_t e) {
  Eigen::MatrixXd a(l.f, l.d);
  for (index_t f = 0; f < l.f; ++f) {
    for (index_t d = 0; d < l.d; ++d) {
      a(f, d) = static_cast<double>(l.gate(e, f, d));
    }
  }
  return a;
}

Eigen::VectorXd row_of(const layer_data& l, index_t e) {
  return Eigen::Map<const Eigen::VectorXf>(l.router.data() + e * l.d, l.d).cast<double>();
}

/// `steps` steps on the sphere of that radius, by the library.
Eigen::VectorXd iterated(const layer_data& l, index_t e, index_t steps, double radius) {
  const Eigen::MatrixXd a = gate_of(l, e);
  Eigen::VectorXd row = row_of(l, e);
  Eigen::VectorXd scratch(row.size());
  mpi_router::power_iteration(mpi_router::gram(a), mpi_router::view(row), mpi_router::view(scratch),
                              {.max_steps = steps, .radius = radius});
  return row;
}

/// All bytes of two files agree, except those of the tensors named.
void check_same_but_for(const std::filesystem::path& before, const std::filesystem::path& after,
                        const std::vector<std::string>& changed) {
  const mpi_router::safetensors_file a(before);
  const mpi_router::safetensors_file b(after);
  REQUIRE(a.bytes().size() == b.bytes().size());
  CHECK(std::ranges::equal(a.header(), b.header()));
  for (const auto& t : a.tensors()) {
    CAPTURE(t.name());
    const bool may_change = std::find(changed.begin(), changed.end(), t.name()) != changed.end();
    CHECK(std::ranges::equal(t.bytes(), b.at(t.name()).bytes()) == !may_change);
  }
}

struct model {
  temporary_folder folder;
  layer_data layer = random_layer(60, 4, 7, 9);
  std::string path = folder / "in.safetensors";
  std::string out = folder / "out.safetensors";

  template <class T = double>
  void write() const {
    checkpoint_builder builder;
    builder.metadata = {{"format", "pt"}, {"note", "kept as it is"}};
    builder.add<T>("mlp.router.weight", {layer.n, layer.d}, layer.router);
    builder.add<bf16>("mlp.experts.gate_proj", {layer.n, layer.f, layer.d}, layer.gates);
    builder.add_raw("other", dtype::i64, {3, 5});
    builder.add_raw("bytes", dtype::boolean, {7});
    builder.write(path);
  }
};

}  // namespace

TEST_CASE("k steps are the library's k steps, whatever rule sets the length") {
  const model m;
  m.write();
  struct {
    std::vector<std::string> flags;
    double radius;  // 0: the length of the row
  } const rules[] = {{{}, 0}, {{"--keep-norm"}, 0}, {{"--radius", "2.5"}, 2.5}, {{"--c-prime", "4"}, 2}};
  for (const index_t steps : {1, 2, 7}) {
    for (const auto& rule : rules) {
      std::vector<std::string> arguments{"recondition", m.path, m.out, "--steps", std::to_string(steps)};
      arguments.insert(arguments.end(), rule.flags.begin(), rule.flags.end());
      std::filesystem::remove(m.out);
      const auto result = run(arguments);
      CAPTURE(result.err);
      REQUIRE(result.status == 0);
      check_same_but_for(m.path, m.out, {"mlp.router.weight"});
      const checkpoint written(m.out);
      const double* const rows = written.find("mlp.router.weight")->data<double>();
      for (index_t e = 0; e < m.layer.n; ++e) {
        const double radius = rule.radius > 0 ? rule.radius : row_of(m.layer, e).norm();
        const Eigen::VectorXd expected = iterated(m.layer, e, steps, radius);
        const Eigen::Map<const Eigen::VectorXd> row(rows + e * m.layer.d, m.layer.d);
        CHECK((row - expected).norm() <= 1e-14 * radius);
        CHECK(row.norm() == doctest::Approx(radius).epsilon(1e-14));
      }
    }
  }
}

TEST_CASE("one step is C rM/‖rM‖, by plain arithmetic") {
  const model m;
  m.write();
  REQUIRE(run({"recondition", m.path, m.out, "--radius", "1"}).status == 0);
  const checkpoint written(m.out);
  for (index_t e = 0; e < m.layer.n; ++e) {
    const Eigen::MatrixXd a = gate_of(m.layer, e);
    const Eigen::VectorXd expected = (a.transpose() * (a * row_of(m.layer, e))).normalized();
    const Eigen::Map<const Eigen::VectorXd> row(
        written.find("mlp.router.weight")->data<double>() + e * m.layer.d, m.layer.d);
    CHECK((row - expected).norm() < 1e-14);
  }
}

TEST_CASE("no step, and the length kept: the same file") {
  const model m;
  m.write();
  REQUIRE(run({"recondition", m.path, m.out, "--steps", "0"}).status == 0);
  CHECK(read_bytes(m.path) == read_bytes(m.out));
  const auto real = data_file("tiny-mpi.safetensors");
  std::filesystem::remove(m.out);
  REQUIRE(run({"recondition", real, m.out, "--steps", "0"}).status == 0);
  CHECK(read_bytes(real) == read_bytes(m.out));
}

TEST_CASE_TEMPLATE("rows are rounded to the type they are stored in", T, float, mpi_router::f16, bf16) {
  const model m;
  m.write<T>();
  REQUIRE(run({"recondition", m.path, m.out, "--steps", "3"}).status == 0);
  check_same_but_for(m.path, m.out, {"mlp.router.weight"});
  const checkpoint written(m.out);
  const auto rows = written.find("mlp.router.weight")->template load<T>();
  const double precision = std::is_same_v<T, float> ? 0x1p-24 : std::is_same_v<T, bf16> ? 0x1p-8 : 0x1p-11;
  for (index_t e = 0; e < m.layer.n; ++e) {
    const double radius = row_of(m.layer, e).norm();
    const auto expected = iterated(m.layer, e, 3, radius);
    for (index_t d = 0; d < m.layer.d; ++d) {
      const auto value = static_cast<double>(static_cast<float>(rows.data()[e * m.layer.d + d]));
      CHECK(std::abs(value - expected[d]) <= precision * std::abs(expected[d]) + 1e-7);
    }
  }
}

TEST_CASE("after enough steps the rows are certified to be principal directions") {
  const model m;
  const auto real = data_file("tiny-vanilla.safetensors");
  CHECK(run({real, "--require-angle", "1e-5"}).status == 1);
  REQUIRE(run({"recondition", real, m.out, "--steps", "300"}).status == 0);
  check_same_but_for(real, m.out, {"model.layers.0.mlp.router.weight", "model.layers.1.mlp.router.weight"});
  CHECK(run({m.out, "--require-angle", "1e-5"}).status == 0);
  const auto document = run_json({m.out});
  for (const auto& layer : document["layers"]) {
    for (const auto& e : layer["experts"]) {
      CHECK(e["cosine_stored"].get<double>() > 1 - 1e-12);
      CHECK(e["steps"].get<index_t>() <= 1);
    }
  }
}

TEST_CASE("shards: each file, and the index, in a new folder") {
  const model m;
  namespace fs = std::filesystem;
  checkpoint_builder builder;
  builder.add<float>("layers.0.mlp.gate.weight", {m.layer.n, m.layer.d}, m.layer.router);
  for (index_t e = 0; e < m.layer.n; ++e) {
    const auto begin = m.layer.gates.begin() + e * m.layer.f * m.layer.d;
    builder.add<bf16>("layers.0.mlp.experts." + std::to_string(e) + ".gate_proj.weight",
                      {m.layer.f, m.layer.d}, {begin, begin + m.layer.f * m.layer.d});
  }
  fs::create_directory(m.folder / "in");
  builder.write_shards(m.folder / "in", 3);
  const std::vector<std::string> files{"model-1.safetensors", "model-2.safetensors", "model-3.safetensors",
                                       "model.safetensors.index.json"};
  const std::string in = m.folder / "in";
  const std::string out = m.folder / "out";
  for (const auto& [source, target] :
       {std::pair{in, out}, {in + "/model.safetensors.index.json", out + "2/"}}) {
    const auto result = run({"recondition", source, target, "--steps", "2"});
    CAPTURE(result.err);
    REQUIRE(result.status == 0);
    CHECK(static_cast<std::size_t>(std::distance(fs::directory_iterator(target), {})) == files.size());
    check_same_but_for(fs::path(in) / files[0], fs::path(target) / files[0], {"layers.0.mlp.gate.weight"});
    for (std::size_t i = 1; i < files.size(); ++i) {
      CHECK(read_bytes(fs::path(in) / files[i]) == read_bytes(fs::path(target) / files[i]));
    }
    const checkpoint written(target);
    const auto rows = written.find("layers.0.mlp.gate.weight")->load<float>();
    for (index_t e = 0; e < m.layer.n; ++e) {
      const auto expected = iterated(m.layer, e, 2, row_of(m.layer, e).norm());
      const Eigen::Map<const Eigen::VectorXf> row(rows.data() + e * m.layer.d, m.layer.d);
      CHECK((row.cast<double>() - expected).norm() < 1e-6 * expected.norm());
    }
  }
  SUBCASE("a folder that exists is never touched") {
    const auto before = read_bytes(fs::path(out) / files[0]);
    check_refused({"recondition", in, out}, "out: exists; name a folder that does not");
    check_refused({"recondition", in, in}, "exists; name a folder that does not");
    CHECK(read_bytes(fs::path(out) / files[0]) == before);
  }
}

TEST_CASE("shards of processes: a router that all repeat changes in all") {
  const auto l = random_layer(61, 4, 7, 9);
  temporary_folder folder;
  const std::string name = "layers.3.ffn.gate.weight";
  std::filesystem::create_directory(folder / "in");
  for (index_t rank = 0; rank < 2; ++rank) {
    checkpoint_builder builder;
    builder.add<float>(name, {l.n, l.d}, l.router);
    for (index_t e = 2 * rank; e < 2 * rank + 2; ++e) {
      builder.add<float>("layers.3.ffn.experts." + std::to_string(e) + ".w1.weight", {l.f, l.d},
                         one_expert(l, e));
    }
    builder.write(folder / ("in/model" + std::to_string(rank) + "-mp2.safetensors"));
  }
  REQUIRE(run({"recondition", folder / "in", folder / "out"}).status == 0);
  for (const char* file : {"model0-mp2.safetensors", "model1-mp2.safetensors"}) {
    check_same_but_for(folder / (std::string("in/") + file), folder / (std::string("out/") + file), {name});
  }
  const auto again = checkpoint(folder / "out");
  CHECK(again.tensors().size() == 5);
}

TEST_CASE("layers in one tensor: each row in its place") {
  const std::vector layers{random_layer(62, 4, 7, 9), random_layer(63, 4, 7, 9)};
  checkpoint_builder builder;
  std::vector<float> routers;  // [D, layers, N]
  std::vector<float> gates;    // [N, layers, F, D]
  for (index_t d = 0; d < 9; ++d) {
    for (const auto& l : layers) {
      for (index_t e = 0; e < 4; ++e) {
        routers.push_back(l.router[static_cast<std::size_t>(e * 9 + d)]);
      }
    }
  }
  for (index_t e = 0; e < 4; ++e) {
    for (const auto& l : layers) {
      const auto one = one_expert(l, e);
      gates.insert(gates.end(), one.begin(), one.end());
    }
  }
  builder.add<float>("decoder.layers.moe_block.gate.kernel", {9, 2, 4}, routers);
  builder.add<float>("decoder.layers.moe_block.wi_0", {4, 2, 7, 9}, gates);
  temporary_folder folder;
  builder.write(folder / "in.safetensors");
  REQUIRE(
      run({"recondition", folder / "in.safetensors", folder / "out.safetensors", "--radius", "2"}).status ==
      0);
  const mpi_router::safetensors_file written(folder / "out.safetensors");
  const auto* out = written.at("decoder.layers.moe_block.gate.kernel").data<float>();
  for (index_t i = 0; i < 2; ++i) {
    for (index_t e = 0; e < 4; ++e) {
      const auto expected = iterated(layers[static_cast<std::size_t>(i)], e, 1, 2);
      for (index_t d = 0; d < 9; ++d) {
        CHECK(static_cast<double>(out[(d * 2 + i) * 4 + e]) == doctest::Approx(expected[d]).epsilon(1e-6));
      }
    }
  }
}

TEST_CASE("neither the input, by whatever name, nor anything else is overwritten") {
  const model m;
  m.write();
  namespace fs = std::filesystem;
  const auto before = read_bytes(m.path);
  fs::create_symlink("in.safetensors", m.folder / "link");
  fs::create_hard_link(m.path, m.folder / "hard");
  fs::create_directory(m.folder / "d");
  for (const std::string target : {"in.safetensors", "link", "hard", "d/../in.safetensors"}) {
    check_refused({"recondition", m.path, m.folder / target}, "never overwritten");
    check_refused({"recondition", m.folder / "link", m.folder / target}, "never overwritten");
  }
  check_refused({"recondition", m.path, m.folder / "d"}, "d: is a folder");
  check_refused({"recondition", m.path, m.folder / "missing/out"}, "missing/out: cannot be written");
  CHECK(read_bytes(m.path) == before);
  CHECK(m.folder.entries() == 4);
  std::ofstream(m.folder / "there") << "kept";
  fs::create_symlink("nowhere", m.folder / "dangling");
  check_refused({"recondition", m.path, m.folder / "there"}, "there: exists");
  check_refused({"recondition", m.path, m.folder / "dangling"}, "dangling: exists");
  CHECK(fs::file_size(m.folder / "there") == 4);
}

TEST_CASE("rows without a step stay as they are, and are named") {
  model m;
  std::fill_n(m.layer.router.begin(), m.layer.d, 0.0F);                                     // expert 0
  std::fill_n(m.layer.gates.begin() + m.layer.f * m.layer.d, m.layer.f * m.layer.d, 0.0F);  // expert 1
  m.layer.gates[static_cast<std::size_t>(2 * m.layer.f * m.layer.d)] =
      std::numeric_limits<float>::quiet_NaN();
  m.write();
  const auto result = run({"recondition", m.path, m.out, "--steps", "2", "--radius", "3"});
  REQUIRE(result.status == 0);
  CHECK(contains(result.out, "kept as it was: mlp, expert 0: zero_row"));
  CHECK(contains(result.out, "kept as it was: mlp, expert 1: zero_image"));
  CHECK(contains(result.out, "kept as it was: mlp, expert 2: non_finite"));
  CHECK(contains(result.out, "1 router rows"));
  const checkpoint before(m.path);
  const checkpoint after(m.out);
  const auto bytes = static_cast<std::size_t>(m.layer.d) * sizeof(double);
  const auto* const a = before.find("mlp.router.weight")->data<double>();
  const auto* const b = after.find("mlp.router.weight")->data<double>();
  CHECK(std::memcmp(a, b, 3 * bytes) == 0);
  CHECK(Eigen::Map<const Eigen::VectorXd>(b + 3 * m.layer.d, m.layer.d).norm() == doctest::Approx(3));
}

TEST_CASE("a length that the type cannot hold is refused") {
  const model m;
  m.write<mpi_router::f16>();
  check_refused({"recondition", m.path, m.out, "--radius", "1e6"},
                "'mlp.router.weight': a row of that length does not fit in F16");
  CHECK(m.folder.entries() == 1);
}

TEST_CASE("a file whose tensors are not aligned") {
  const model m;
  m.write();
  std::string bytes = read_bytes(m.path);
  std::uint64_t length = 0;
  std::memcpy(&length, bytes.data(), sizeof length);
  bytes.insert(8 + length, "   ");
  length += 3;
  std::memcpy(bytes.data(), &length, sizeof length);
  write_bytes(m.path, bytes);
  REQUIRE(run({"recondition", m.path, m.out, "--steps", "5"}).status == 0);
  check_same_but_for(m.path, m.out, {"mlp.router.weight"});
}

}  // namespace test_recondition
