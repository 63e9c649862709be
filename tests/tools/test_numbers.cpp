// The numbers of verify_checkpoint: those recorded for the models that come with the project, and an
// independent SVD.
#include "program.hpp"

#include <support/svd.hpp>

#include <cmath>
#include <sstream>

namespace test_numbers {
using namespace tool_test;

namespace {

/// What an SVD by one-sided Jacobi rotations (not the one that the program uses) and plain iteration say.
struct oracle {
  double sigma_1 = 0;
  double sigma_2 = 0;
  Eigen::VectorXd v;
  Eigen::MatrixXd a;

  explicit oracle(Eigen::MatrixXd matrix) : a(std::move(matrix)) {
    const auto svd = test_support::jacobi_svd(a);
    sigma_1 = svd.singularValues()[0];
    sigma_2 = svd.singularValues().size() > 1 ? svd.singularValues()[1] : 0;
    v = svd.matrixV().col(0);
  }
  [[nodiscard]] double cosine(const Eigen::VectorXd& r) const { return std::abs(r.dot(v)) / r.norm(); }
  [[nodiscard]] double sine(const Eigen::VectorXd& r) const { return (r - r.dot(v) * v).norm() / r.norm(); }
  [[nodiscard]] double lambda(const Eigen::VectorXd& r) const { return (a * r).norm() / r.norm() / sigma_1; }
  [[nodiscard]] Eigen::VectorXd step(const Eigen::VectorXd& r) const {
    return (a.transpose() * (a * r)).normalized();
  }
  [[nodiscard]] index_t steps(Eigen::VectorXd r, double tolerance) const {
    index_t k = 0;
    for (; sine(r) > tolerance && k < 100000; ++k) {
      r = step(r);
    }
    return k;
  }
};

void check_expert(const json& e, const oracle& expected, const Eigen::VectorXd& row, double tolerance) {
  CAPTURE(e["expert"]);
  CHECK(e["status"] == "ok");
  CHECK(e["sigma1"].get<double>() == doctest::Approx(expected.sigma_1).epsilon(1e-9));
  CHECK(e["sigma2"].get<double>() == doctest::Approx(expected.sigma_2).epsilon(1e-9));
  const auto near = [&](const char* field, double value) {
    CAPTURE(field);
    CHECK(std::abs(e[field].get<double>() - value) < 1e-8);
  };
  const Eigen::VectorXd next = expected.step(row);
  near("cosine_stored", expected.cosine(row));
  near("cosine_step", expected.cosine(next));
  near("lambda_stored", expected.lambda(row));
  near("lambda_step", expected.lambda(next));
  const double rho = (expected.a * row).squaredNorm() / row.squaredNorm();
  CHECK(e["rayleigh"].get<double>() == doctest::Approx(rho).epsilon(1e-10));
  const Eigen::VectorXd unit = row.normalized();
  const Eigen::VectorXd g = expected.a.transpose() * (expected.a * unit) - rho * unit;
  CHECK(e["residual"].get<double>() == doctest::Approx(g.norm()).epsilon(1e-9));
  REQUIRE(e["steps"].is_number());
  CHECK(std::abs(e["steps"].get<index_t>() - expected.steps(row, tolerance)) <= 1);
  // A certificate never claims what the SVD refutes, and on these matrices it claims something.
  const double angle = std::asin(std::min(1.0, expected.sine(row)));
  CHECK(e["certificate"] == "rigorous");
  CHECK(e["angle_bound"].get<double>() >= angle - 1e-12);
  CHECK(e["angle_bound"].get<double>() <= angle + 1e-6);
}

Eigen::MatrixXd read_gate(const mpi_router::stored_tensor& t, index_t e) {
  const auto loaded = t.load<mpi_router::bf16>();
  Eigen::MatrixXd a(t.shape()[1], t.shape()[2]);
  for (index_t f = 0; f < a.rows(); ++f) {
    for (index_t d = 0; d < a.cols(); ++d) {
      a(f, d) = static_cast<double>(static_cast<float>(loaded.data()[(e * a.rows() + f) * a.cols() + d]));
    }
  }
  return a;
}

double mean(const json& experts, const char* field) {
  double sum = 0;
  for (const auto& e : experts) {
    sum += e[field].get<double>();
  }
  return sum / static_cast<double>(experts.size());
}

const std::vector<std::string> expert_fields{
    "expert",      "sigma1",   "sigma2",   "sigma2_from", "cosine_stored", "cosine_step", "lambda_stored",
    "lambda_step", "rayleigh", "residual", "angle_bound", "certificate",   "steps",       "status"};

}  // namespace

TEST_CASE("without arguments: the recorded means and steps of the models that come with the project") {
  const auto document = run_json({});
  const auto& layers = document["layers"];
  REQUIRE(layers.size() == 4);
  struct {
    const char* file;
    const char* name;
    double cosine_step;
    index_t least;
    index_t most;
  } const expected[] = {{"tiny-vanilla.safetensors", "model.layers.0.mlp", 0.824, 19, 133},
                        {"tiny-vanilla.safetensors", "model.layers.1.mlp", 0.425, 31, 222},
                        {"tiny-mpi.safetensors", "model.layers.0.mlp", 0.973, 6, 38},
                        {"tiny-mpi.safetensors", "model.layers.1.mlp", 0.981, 11, 74}};
  for (std::size_t i = 0; i < 4; ++i) {
    const auto& layer = layers[i];
    CAPTURE(expected[i].file);
    CHECK(layer["file"].get<std::string>().ends_with(expected[i].file));
    CHECK(layer["name"] == expected[i].name);
    CHECK(layer["num_experts"] == 8);
    CHECK(layer["ffn_dim"] == 128);
    CHECK(layer["hidden_dim"] == 256);
    REQUIRE(layer["experts"].size() == 8);
    CHECK(std::abs(mean(layer["experts"], "cosine_step") - expected[i].cosine_step) < 0.0005);
    index_t least = 1 << 20;
    index_t most = 0;
    for (std::size_t e = 0; e < 8; ++e) {
      const auto& expert = layer["experts"][e];
      CHECK(expert["expert"] == e);
      CHECK(expert.size() == expert_fields.size());
      for (const auto& field : expert_fields) {
        CHECK(expert.contains(field));
      }
      least = std::min(least, expert["steps"].get<index_t>());
      most = std::max(most, expert["steps"].get<index_t>());
    }
    CHECK(least == expected[i].least);
    CHECK(most == expected[i].most);
  }
  CHECK(document["unmatched"].empty());
}

TEST_CASE("experts of those models against another SVD and plain iteration: every other one, or all") {
  for (const char* name : {"tiny-mpi.safetensors", "tiny-vanilla.safetensors"}) {
    const auto document = run_json({data_file(name)});
    const mpi_router::checkpoint model(data_file(name));
    for (const auto& layer : document["layers"]) {
      const std::string prefix = layer["name"];
      const auto* router = model.find(prefix + ".router.weight");
      const auto* gates = model.find(prefix + ".experts.gate_proj");
      REQUIRE(router != nullptr);
      REQUIRE(gates != nullptr);
#if defined(MPIROUTER_TEST_FULL)
      constexpr index_t first = 0, step = 1;
#else
      const index_t first = prefix.find(".0.") == std::string::npos ? 1 : 0, step = 2;
#endif
      for (index_t e = first; e < 8; e += step) {
        const Eigen::Map<const Eigen::VectorXf> row(router->data<float>() + e * 256, 256);
        check_expert(layer["experts"][static_cast<std::size_t>(e)], oracle(read_gate(*gates, e)),
                     row.cast<double>(), 1e-6);
      }
    }
  }
}

TEST_CASE("tall, wide and odd shapes; tolerance and max-steps") {
  const temporary_folder folder;
  checkpoint_builder builder;
  std::vector<layer_data> layers;
  const std::vector<std::array<index_t, 2>> shapes{{3, 17}, {40, 7}, {2, 2}, {31, 33}};
  for (std::size_t i = 0; i < shapes.size(); ++i) {
    layers.push_back(random_layer(10 + i, 3, shapes[i][0], shapes[i][1]));
    add_layer(builder, "layers." + std::to_string(i) + ".", layers.back());
  }
  builder.write(folder / "m.safetensors");
  const double tolerance = 1e-3;
  const auto document =
      run_json({folder / "m.safetensors", "--layout", "nfd", "--tolerance", "1e-3", "--max-steps", "100000"});
  REQUIRE(document["layers"].size() == shapes.size());
  for (std::size_t i = 0; i < shapes.size(); ++i) {
    const auto& l = layers[i];
    CHECK(document["layers"][i]["name"] == "layers." + std::to_string(i) + ".mlp");
    for (index_t e = 0; e < l.n; ++e) {
      Eigen::MatrixXd a(l.f, l.d);
      for (index_t f = 0; f < l.f; ++f) {
        for (index_t d = 0; d < l.d; ++d) {
          a(f, d) = static_cast<double>(l.gate(e, f, d));
        }
      }
      const Eigen::Map<const Eigen::VectorXf> row(l.router.data() + e * l.d, l.d);
      check_expert(document["layers"][i]["experts"][static_cast<std::size_t>(e)], oracle(a),
                   row.cast<double>(), tolerance);
    }
  }

  // Steps beyond the limit are null, those within it do not change.
  const auto limited =
      run_json({folder / "m.safetensors", "--layout", "nfd", "--tolerance", "1e-3", "--max-steps", "20"});
  index_t nulls = 0;
  for (std::size_t i = 0; i < shapes.size(); ++i) {
    for (std::size_t e = 0; e < 3; ++e) {
      const auto& free = document["layers"][i]["experts"][e]["steps"];
      const auto& bound = limited["layers"][i]["experts"][e]["steps"];
      nulls += bound.is_null() ? 1 : 0;
      CHECK(bound.is_null() == (free.get<index_t>() > 20));
      CHECK((bound.is_null() || bound == free));
    }
  }
  CHECK(nulls > 0);
  CHECK(nulls < 12);
}

TEST_CASE("layers come in natural order") {
  const temporary_folder folder;
  checkpoint_builder builder;
  const auto layer = random_layer(20, 2, 3, 4);
  for (const char* prefix : {"layers.10.", "layers.9.", "layers.0.", "", "a.layers.3."}) {
    add_layer(builder, prefix, layer);
  }
  builder.write(folder / "m.safetensors");
  std::vector<std::string> names;
  const auto document = run_json({folder / "m.safetensors"});
  for (const auto& found : document["layers"]) {
    names.push_back(found["name"]);
  }
  CHECK(names ==
        std::vector<std::string>{"a.layers.3.mlp", "layers.0.mlp", "layers.9.mlp", "layers.10.mlp", "mlp"});
}

TEST_CASE("the trace is the iteration") {
  const temporary_folder folder;
  const auto document =
      run_json({data_file("tiny-mpi.safetensors"), "--trace", folder / "trace.csv", "--max-steps", "30"});
  std::istringstream lines(read_bytes(folder / "trace.csv"));
  std::string line;
  REQUIRE(std::getline(lines, line));
  CHECK(line == "file,layer,expert,step,rho,residual,angle");
  std::map<std::pair<std::string, index_t>, std::vector<std::array<double, 3>>> traces;
  while (std::getline(lines, line)) {
    std::istringstream fields(line);
    std::vector<std::string> field(7);
    for (auto& f : field) {
      REQUIRE(std::getline(fields, f, ','));
    }
    CHECK(field[0] == data_file("tiny-mpi.safetensors"));
    auto& trace = traces[{field[1], std::stol(field[2])}];
    CHECK(std::stol(field[3]) == static_cast<long>(trace.size()));
    trace.push_back({std::stod(field[4]), std::stod(field[5]), std::stod(field[6])});
  }
  CHECK(traces.size() == 16);
  for (const auto& layer : document["layers"]) {
    for (const auto& e : layer["experts"]) {
      const auto& trace = traces[{layer["name"], e["expert"]}];
      REQUIRE(!trace.empty());
      CHECK(trace[0][0] == doctest::Approx(e["rayleigh"].get<double>()).epsilon(1e-12));
      CHECK(trace[0][1] == doctest::Approx(e["residual"].get<double>()).epsilon(1e-9));
      CHECK(std::cos(trace[0][2]) == doctest::Approx(e["cosine_stored"].get<double>()).epsilon(1e-9));
      CHECK(std::cos(trace[1][2]) == doctest::Approx(e["cosine_step"].get<double>()).epsilon(1e-9));
      const auto steps = static_cast<std::size_t>(e["steps"].is_null() ? 30 : e["steps"].get<index_t>());
      CHECK(trace.size() <= steps + 2);
      CHECK(trace.size() + 1 >= steps + 1);
      CHECK(std::sin(trace.back()[2]) < (e["steps"].is_null() ? 1.0 : 1.0000001e-6));
      for (std::size_t k = 1; k < trace.size(); ++k) {
        CHECK(trace[k][0] >= trace[k - 1][0] * (1 - 1e-14));  // ρ never decreases
        CHECK(trace[k][2] <= trace[k - 1][2] + 1e-12);        // and the angle never grows
      }
    }
  }
}

TEST_CASE("certificates alone agree with the SVD within what they claim") {
  const auto exact = run_json({});
  const auto certified = run_json({"--no-svd"});
  REQUIRE(certified["layers"].size() == exact["layers"].size());
  CHECK(certified["exact"] == false);
  for (std::size_t i = 0; i < exact["layers"].size(); ++i) {
    for (std::size_t e = 0; e < 8; ++e) {
      const auto& x = exact["layers"][i]["experts"][e];
      const auto& c = certified["layers"][i]["experts"][e];
      CHECK(x["sigma2_from"] == "svd");
      CHECK(c["sigma2_from"] == "ritz (estimate)");
      CHECK(std::abs(c["sigma2"].get<double>() - x["sigma2"].get<double>()) < 1e-5);
      for (const char* field : {"sigma1", "cosine_stored", "cosine_step", "lambda_stored", "lambda_step"}) {
        CHECK(std::abs(c[field].get<double>() - x[field].get<double>()) < 1e-7);
      }
      for (const char* field : {"rayleigh", "residual", "angle_bound", "certificate"}) {
        CHECK(c[field] == x[field]);
      }
      const auto upper = c["steps"].get<index_t>();
      CHECK(upper >= x["steps"].get<index_t>());
      CHECK(upper <= x["steps"].get<index_t>() + 1);
    }
  }
}

TEST_CASE("the results do not depend on the number of threads") {
  const temporary_folder folder;
  for (const char* threads : {"1", "2", "5"}) {
    run_json({});  // each run must succeed
    const auto result = run({"--json", "-"}, std::string("OMP_NUM_THREADS=") + threads);
    REQUIRE(result.status == 0);
    write_bytes(folder / threads, result.out);
  }
  CHECK(read_bytes(folder / "1") == read_bytes(folder / "2"));
  CHECK(read_bytes(folder / "1") == read_bytes(folder / "5"));
}

TEST_CASE(
    "exit status 1 if a row is not certified to the angle that is asked for, and all is written still") {
  const temporary_folder folder;
  const auto path = data_file("tiny-mpi.safetensors");
  CHECK(run({path, "--require-angle", "0.9"}).status == 0);  // the farthest row is 47.4° = 0.828 rad off
  CHECK(run({path, "--require-angle", "0.829"}).status == 0);
  const auto result = run({path, "--require-angle", "0.82", "--json", folder / "out.json"});
  CHECK(result.status == 1);
  CHECK(contains(result.err, "15 of 16 rows are certified"));
  CHECK(json::parse(read_bytes(folder / "out.json"))["layers"].size() == 2);
}

TEST_CASE("what a person reads") {
  const auto result = run({});
  CHECK(result.status == 0);
  CHECK(result.err.empty());
  CHECK(result.out.find('\x1b') == std::string::npos);  // no colours where there is no terminal
  for (const char* text :
       {"principal right singular direction", "model.layers.1.mlp: 8 experts, F = 128, D = 256", "rigorous",
        "0.973", "0.981", "0.824", "0.425", "6–38", "11–74", "19–133", "31–222"}) {
    CAPTURE(text);
    CHECK(contains(result.out, text));
  }
  SUBCASE("colours on request") {
    CHECK(contains(run({"--color", "always"}).out, "\x1b["));
    CHECK_FALSE(contains(run({"--color", "never"}).out, "\x1b["));
  }
  SUBCASE("a line for each layer") {
    const auto summary = run({"--summary"}).out;
    CHECK(contains(summary, "0.973"));
    CHECK_FALSE(contains(summary, "residual"));
    CHECK(std::count(summary.begin(), summary.end(), '\n') < 15);
  }
  SUBCASE("worst first") {
    const auto sorted = run({data_file("tiny-mpi.safetensors"), "--worst-first"}).out;
    std::istringstream lines(sorted);
    std::vector<double> cosines;
    for (std::string line; std::getline(lines, line);) {
      if (contains(line, "rigorous")) {
        std::istringstream fields(line);
        double expert = 0;
        double gap = 0;
        double stored = 0;
        double step = 0;
        if (fields >> expert >> gap >> stored >> step) {
          cosines.push_back(step);
        }
      }
    }
    REQUIRE(cosines.size() == 16);
    CHECK(std::is_sorted(cosines.begin(), cosines.begin() + 8));
    CHECK(std::is_sorted(cosines.begin() + 8, cosines.end()));
    CHECK(cosines.front() < cosines[7]);
  }
  SUBCASE("JSON in place of the table") {
    CHECK(json::parse(run({"--json", "-"}).out)["layers"].size() == 4);
  }
  SUBCASE("--help and --version") {
    const auto help = run({"--help"});
    CHECK(help.status == 0);
    for (const char* text :
         {"--require-angle", "radians", "Exit status", "recondition", "gate_up_proj", "nd2f-interleaved"}) {
      CHECK(contains(help.out, text));
    }
    CHECK(run({"recondition", "--help"}).status == 0);
    CHECK(run({"--version"}).out.starts_with("mpi_router "));
  }
}

TEST_CASE("without an SVD no step is taken towards a tolerance that the certificate cannot reach") {
  const auto result = run(
      {data_file("tiny-mpi.safetensors"), "--no-svd", "--tolerance", "1e-15", "--max-steps", "1000000000"},
      "timeout 300");  // the steps would take days
  CHECK(result.status == 0);
  CHECK(contains(result.out, "> 1000000000"));
}

TEST_CASE("experts too large for the rigorous certificate: the probe agrees with the SVD") {
  // σ = 4, 2, 1, 1, …: a diagonal with more than 512 entries, and one whose squares no float can hold;
  // and a gap that float would not see.
  for (const auto& [scale, second] : {std::pair{1.0F, 2.0F}, {0x1p-100F, 2.0F}, {1.0F, 3.9997F}}) {
    constexpr index_t size = 520;
    layer_data layer{1, size, size, {}, std::vector<float>(size * size)};
    test_support::random_source random(71);
    for (index_t i = 0; i < size; ++i) {
      layer.router.push_back(static_cast<float>(random.normal()));
      layer.gates[static_cast<std::size_t>(i * (size + 1))] = scale * (i == 0   ? 4.0F
                                                                       : i == 1 ? second
                                                                                : 1.0F);
    }
    const temporary_folder folder;
    checkpoint_builder builder;
    add_layer<float>(builder, "", layer);
    builder.write(folder / "m.safetensors");
    const auto e =
        run_json({folder / "m.safetensors", "--layout", "nfd", "--no-svd"})["layers"][0]["experts"][0];
    CAPTURE(e.dump());
    CHECK(e["certificate"] == "probabilistic");
    CHECK(e["sigma1"].get<double>() == doctest::Approx(4 * static_cast<double>(scale)).epsilon(1e-9));
    double squares = 0;
    for (const float x : layer.router) {
      squares += static_cast<double>(x) * static_cast<double>(x);
    }
    const double cosine = std::abs(static_cast<double>(layer.router[0])) / std::sqrt(squares);
    CHECK(std::abs(e["cosine_stored"].get<double>() - cosine) < 1e-8);
    CHECK(e["angle_bound"].get<double>() >= std::acos(cosine) - 1e-12);
    CHECK(e["angle_bound"].get<double>() <= std::acos(cosine) + 1e-6);
  }
}

TEST_CASE("large experts that stay packed have the numbers of the same weights in F32") {
  // FP8 with scales of powers of two, which floats hold exactly; no SVD of 600×10500.
  constexpr index_t F = 600;
  constexpr index_t D = 10500;
  test_support::random_source random(72);
  layer_data layer{1, F, D, {}, {}};
  std::vector<std::byte> codes;
  for (index_t i = 0; i < D; ++i) layer.router.push_back(static_cast<float>(random.normal()));
  for (index_t i = 0; i < F * D; ++i) {
    const auto code = static_cast<std::uint8_t>(
        i % D < 300 ? 0x38 : random.integer(0x20, 0x38) + 128 * random.integer(0, 1));
    codes.push_back(static_cast<std::byte>(code));
    layer.gates.push_back(mpi_router::packed::e4m3fn(code) * 0.5F);
  }
  const temporary_folder folder;
  const std::string expert = "model.layers.0.mlp.experts.0.gate_proj.weight";
  checkpoint_builder packed;
  packed.add<float>("model.layers.0.mlp.gate.weight", {1, D}, layer.router);
  packed.add_bytes(expert, dtype::f8_e4m3, {F, D}, codes);
  packed.add<float>(expert + "_scale_inv", {1}, {0.5F});
  packed.write(folder / "packed.safetensors");
  checkpoint_builder plain;
  plain.add<float>("model.layers.0.mlp.gate.weight", {1, D}, layer.router);
  plain.add<float>(expert, {F, D}, layer.gates);
  plain.write(folder / "plain.safetensors");
  const auto of = [&](const char* file) {
    return run_json({folder / file, "--layout", "nfd"})["layers"][0]["experts"][0];
  };
  const auto a = of("packed.safetensors");
  const auto b = of("plain.safetensors");
  CAPTURE(a.dump());
  CAPTURE(b.dump());
  CHECK(a["certificate"] == "probabilistic");
  CHECK(a["certificate"] == b["certificate"]);
  CHECK(a["steps"] == b["steps"]);
  for (const char* number : {"cosine_stored", "cosine_step", "lambda_stored", "lambda_step"}) {
    CHECK(std::abs(a[number].get<double>() - b[number].get<double>()) < 1e-9);
  }
  CHECK(a["sigma1"].get<double>() == doctest::Approx(b["sigma1"].get<double>()).epsilon(1e-12));
  CHECK(a["sigma2"].get<double>() == doctest::Approx(b["sigma2"].get<double>()).epsilon(1e-5));

  const auto both =
      run_json({"compare", folder / "packed.safetensors", folder / "plain.safetensors", "--layout", "nfd"});
  const auto pair = both["layers"][0]["experts"][0];
  CAPTURE(pair.dump());
  CHECK(pair["direction_cosine"].get<double>() > 1 - 1e-12);
  CHECK(pair["change_norm"] == 0);
  CHECK(pair["a"]["sigma1"].get<double>() ==
        doctest::Approx(pair["b"]["sigma1"].get<double>()).epsilon(1e-12));
}

}  // namespace test_numbers
