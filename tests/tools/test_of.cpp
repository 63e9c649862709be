// What --of measures is the matrix of the parts' rows, one below the other; groups of experts; and the
// command lines that settle a doubt, which are run.
#include "program.hpp"

#include <mpi_router/io/moe_layers.hpp>

#include <cmath>

namespace test_of {
using namespace tool_test;

namespace {

using io_test::one_expert;
using mpi_router::bf16;

constexpr index_t N = 4;
constexpr index_t F = 5;
constexpr index_t D = 9;

/// Experts with three matrices, the down projection turned: what is stored is Wᵀ turned back.
struct three {
  layer_data gate = random_layer(1, N, F, D);
  layer_data up = random_layer(2, N, F, D);
  layer_data down = random_layer(3, N, F, D);

  void write(const std::filesystem::path& path, bool with_down = true) const {
    checkpoint_builder builder;
    builder.add<float>("h.1.mlp.gate.weight", {N, D}, gate.router);
    for (index_t e = 0; e < N; ++e) {
      const auto expert = "h.1.mlp.experts." + std::to_string(e);
      builder.add<bf16>(expert + ".gate_proj.weight", {F, D}, one_expert(gate, e));
      builder.add<bf16>(expert + ".up_proj.weight", {F, D}, one_expert(up, e));
      std::vector<float> turned;
      for (index_t d = 0; d < D; ++d) {
        for (index_t f = 0; f < F; ++f) {
          turned.push_back(down.gate(e, f, d));
        }
      }
      if (with_down) {
        builder.add<bf16>(expert + ".down_proj.weight", {D, F}, turned);
      }
    }
    builder.write(path);
  }
  /// A model whose gates are these matrices times a number, one below the other.
  void write_stacked(const std::filesystem::path& path,
                     const std::vector<std::pair<const layer_data*, float>>& parts) const {
    checkpoint_builder builder;
    builder.add<float>("h.1.mlp.gate.weight", {N, D}, gate.router);
    for (index_t e = 0; e < N; ++e) {
      std::vector<float> rows;
      for (const auto& [part, factor] : parts) {
        for (const float x : one_expert(*part, e)) {
          rows.push_back(factor * x);
        }
      }
      builder.add<float>("h.1.mlp.experts." + std::to_string(e) + ".gate_proj.weight",
                         {static_cast<index_t>(parts.size()) * F, D}, rows);
    }
    builder.write(path);
  }
};

/// Runs a command line that the program has printed, as a shell does.
outcome run_printed(std::string command, const std::string& more) {
  const std::string name = "verify_checkpoint ";
  REQUIRE(command.starts_with(name));
  const temporary_folder folder;
  command = quoted(PROGRAM) + " " + command.substr(name.size()) + " " + more + " >" + quoted(folder / "out") +
            " 2>" + quoted(folder / "err") + " </dev/null";
  const int status = std::system(command.c_str());
  return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, read_bytes(folder / "out"),
          read_bytes(folder / "err")};
}

/// The command lines after a mark, to the end of the line or the next semicolon.
std::vector<std::string> commands_in(const std::string& text, const std::string& mark) {
  std::vector<std::string> out;
  for (auto at = text.find(mark); at != text.npos; at = text.find(mark, at + 1)) {
    const auto begin = at + mark.size();
    out.push_back(text.substr(begin, text.find_first_of(";\n", begin) - begin));
  }
  return out;
}

}  // namespace

TEST_CASE("a part, a sum and a weighted sum have the numbers of the stacked matrix") {
  const temporary_folder folder;
  const three model;
  model.write(folder / "model.safetensors");
  const auto check = [&](const std::string& of,
                         const std::vector<std::pair<const layer_data*, float>>& parts) {
    CAPTURE(of);
    model.write_stacked(folder / "stacked.safetensors", parts);
    const auto document = run_json({folder / "model.safetensors", "--of", of});
    CHECK(numbers_of(document) == numbers_of(run_json({folder / "stacked.safetensors"})));
    CHECK(document["layers"][0]["of"] == of);
    CHECK(document["layers"][0]["ffn_dim"] == F);
    CHECK(document["layers"][0]["matrices"].size() == parts.size());
    CHECK(document["coverage"]["complete"] == true);
  };
  check("up", {{&model.up, 1.0F}});
  check("down", {{&model.down, 1.0F}});
  check("gate+up", {{&model.gate, 1.0F}, {&model.up, 1.0F}});
  check("gate+up+down", {{&model.gate, 1.0F}, {&model.up, 1.0F}, {&model.down, 1.0F}});
  check("4*up", {{&model.up, 2.0F}});
  check("gate+0.25*down", {{&model.gate, 1.0F}, {&model.down, 0.5F}});
  const auto matrices =
      run_json({folder / "model.safetensors", "--of", "gate+0.25*down"})["layers"][0]["matrices"];
  CHECK(matrices[1] == json{{"part", "down"},
                            {"weight", 0.25},
                            {"tensor", "h.1.mlp.experts.{expert}.down_proj.weight"},
                            {"dtype", "BF16"},
                            {"layout", "ndf"},
                            {"layout_known_by", "its shape"}});
}

TEST_CASE("a large latent expert has the numbers of A P") {
  const temporary_folder folder;
  constexpr index_t many = 750;   // neurons, too many to decompose
  constexpr index_t wide = 8193;  // no multiple of a panel; A P has more than six million elements
  constexpr index_t latent = 3;
  test_support::random_source random(11);
  const auto whole = [&](index_t count) {  // A P is exact in floats
    std::vector<float> out(static_cast<std::size_t>(count));
    for (auto& x : out) x = std::round(4 * static_cast<float>(random.normal()));
    return out;
  };
  const auto router = whole(wide);
  const auto a = whole(many * latent);
  const auto p = whole(latent * wide);
  std::vector<float> product(static_cast<std::size_t>(many * wide));
  for (index_t f = 0; f < many; ++f) {
    for (index_t l = 0; l < latent; ++l) {
      for (index_t d = 0; d < wide; ++d) {
        product[static_cast<std::size_t>(f * wide + d)] +=
            a[static_cast<std::size_t>(f * latent + l)] * p[static_cast<std::size_t>(l * wide + d)];
      }
    }
  }
  checkpoint_builder composed;
  composed.add<float>("h.1.mlp.gate.weight", {1, wide}, router);
  composed.add<float>("h.1.mlp.experts.0.gate_proj.weight", {many, latent}, a);
  composed.add<float>("h.1.mlp.fc1_latent_proj.weight", {latent, wide}, p);
  composed.write(folder / "latent.safetensors");
  checkpoint_builder formed;
  formed.add<float>("h.1.mlp.gate.weight", {1, wide}, router);
  formed.add<float>("h.1.mlp.experts.0.gate_proj.weight", {many, wide}, product);
  formed.write(folder / "formed.safetensors");
  const auto numbers = numbers_of(run_json({folder / "latent.safetensors"}));
  CHECK(numbers[0][0]["certificate"] == "probabilistic");
  CHECK(numbers == numbers_of(run_json({folder / "formed.safetensors"})));
}

TEST_CASE("gate is the default, and says nothing of sums") {
  const temporary_folder folder;
  three().write(folder / "model.safetensors");
  const auto plain = run({folder / "model.safetensors", "--json", "-"});
  CHECK(plain.status == 0);
  CHECK(plain.out == run({folder / "model.safetensors", "--json", "-", "--of", "gate"}).out);
  CHECK_FALSE(json::parse(plain.out)["layers"][0].contains("of"));
  CHECK_FALSE(contains(run({folder / "model.safetensors"}).out, "; of "));
}

TEST_CASE("the table and --list name what is measured") {
  const temporary_folder folder;
  three().write(folder / "model.safetensors");
  for (const char* flag : {"--list", "--summary"}) {
    const auto out = run({folder / "model.safetensors", "--of", "up+down", flag}).out;
    CAPTURE(out);
    CHECK(contains(out,
                   "; of up+down: up experts.{expert}.up_proj.weight BF16 [N, F, D] by that of the gates, "
                   "down experts.{expert}.down_proj.weight BF16 [N, D, F] by its shape"));
  }
}

TEST_CASE("sums that are none, and layers that lack a part") {
  const temporary_folder folder;
  three().write(folder / "model.safetensors", false);
  check_refused({folder / "model.safetensors", "--of", "gate+side"}, "--of takes gate, up and down");
  check_refused({folder / "model.safetensors", "--of", ""}, "--of: an empty word");
  check_refused({folder / "model.safetensors", "--of", "gate+down"},
                "its down projections, which --of asks for, cannot be told: there is no "
                "'h.1.mlp.experts.0.down_proj.weight'");
}

TEST_CASE("recondition turns rows to what --of names") {
  const temporary_folder folder;
  three().write(folder / "model.safetensors");
  const auto before = run_json({folder / "model.safetensors", "--of", "up+down"});
  REQUIRE(run({"recondition", folder / "model.safetensors", folder / "new.safetensors", "--steps", "1",
               "--of", "up+down"})
              .status == 0);
  const auto after = run_json({folder / "new.safetensors", "--of", "up+down"});
  for (std::size_t e = 0; e < N; ++e) {
    CHECK(after["layers"][0]["experts"][e]["cosine_stored"].get<double>() ==
          doctest::Approx(before["layers"][0]["experts"][e]["cosine_step"].get<double>()).epsilon(1e-6));
  }
}

TEST_CASE("a second group of experts is a layer with a name of its own") {
  const temporary_folder folder;
  const auto text = random_layer(4, 3, F, D);
  const auto image = random_layer(5, 2, F - 1, D);
  checkpoint_builder builder;
  const std::string block = "model.layers.1.mlp.";
  builder.add<float>(block + "gate.weight", {3, D}, text.router);
  builder.add<float>(block + "gate.weight_1", {2, D}, image.router);
  for (index_t e = 0; e < 5; ++e) {
    const auto& of = e < 3 ? text : image;
    builder.add<bf16>(block + "experts." + std::to_string(e) + ".gate_proj.weight", {of.f, D},
                      one_expert(of, e < 3 ? e : e - 3));
  }
  builder.write(folder / "model.safetensors");
  const auto document = run_json({folder / "model.safetensors"});
  REQUIRE(document["layers"].size() == 2);
  CHECK(document["layers"][1]["name"] == block + "gate.weight_1");
  CHECK(document["layers"][1]["first_expert"] == 3);
  CHECK_FALSE(document["layers"][0].contains("first_expert"));
  CHECK(document["coverage"]["complete"] == true);
  checkpoint_builder alone;
  io_test::add_layer(alone, "", image);
  alone.write(folder / "alone.safetensors");
  CHECK(document["layers"][1]["experts"] == run_json({folder / "alone.safetensors"})["layers"][0]["experts"]);
  CHECK(contains(run({folder / "model.safetensors"}).out,
                 "; a group of its own: expert 0 is what names call 3"));
}

TEST_CASE("the command line that settles a doubt is printed, and does") {
  const temporary_folder folder;
  const auto path = (folder / "it's a model.safetensors");
  checkpoint_builder builder;
  const auto square = random_layer(6, N, D, D);
  const auto plain = random_layer(7, N, F, D);
  io_test::add_layer(builder, "model.layers.0.", plain);
  builder.add<float>("model.layers.1.mlp.gate.weight", {N, D}, square.router);
  builder.add<bf16>("model.layers.1.mlp.of_mine.gate", {N, D, D}, square.gates);
  builder.write(path);
  for (const char* flag : {"--list", "--summary"}) {
    const auto commands = commands_in(run({path, flag}).out, "if it is so: ");
    REQUIRE(commands.size() == 2);
    CHECK(contains(commands[0],
                   "--router 'model.layers.{layer}.mlp.gate.weight' --gate "
                   "'model.layers.{layer}.mlp.of_mine.gate' --layout nfd"));
    for (const auto& command : commands) {
      const auto again = run_printed(command, "--json -");
      CAPTURE(again.err);
      REQUIRE(again.status == 0);
      const auto layers = json::parse(again.out)["layers"];
      REQUIRE(layers.size() == 1);
      CHECK(layers[0]["gate"] == "model.layers.1.mlp.of_mine.gate");
      CHECK(contains(command, "--layout " + layers[0]["layout"].get<std::string>()));
    }
  }
  checkpoint_builder alone;  // where nothing else can be read, the error says it
  alone.add<float>("model.layers.1.mlp.gate.weight", {N, D}, square.router);
  alone.add<bf16>("model.layers.1.mlp.of_mine.gate", {N, D, D}, square.gates);
  alone.write(path);
  const auto refused = run({path});
  CHECK(refused.status == 2);
  const auto commands = commands_in(refused.err, "if it is so: ");
  REQUIRE(commands.size() == 2);
  CHECK(run_printed(commands[1], "--list").status == 0);
}

TEST_CASE("layers found by shapes alone come with the command line that names them") {
  const temporary_folder folder;
  checkpoint_builder builder;
  for (const char* number : {"4", "5"}) {
    const auto l = random_layer(8, N, F, D);
    const std::string block = std::string("net.") + number + ".ff.";
    builder.add<float>(block + "choose", {N, D}, l.router);
    for (index_t e = 0; e < N; ++e) {
      builder.add<bf16>(block + "part." + std::to_string(e) + ".first.gate", {F, D}, one_expert(l, e));
    }
  }
  builder.write(folder / "model.safetensors");
  const auto expected = numbers_of(run_json({folder / "model.safetensors"}));
  REQUIRE(expected.size() == 2);
  const auto commands = commands_in(run({folder / "model.safetensors"}).out, "to name it: ");
  REQUIRE(commands.size() == 1);  // for both layers
  const auto again = run_printed(commands[0], "--json -");
  REQUIRE(again.status == 0);
  CHECK(numbers_of(json::parse(again.out)) == expected);
}

TEST_CASE("the command line that settles a doubt asks for all that was asked for") {
  const temporary_folder folder;
  const auto path = (folder / "a model.safetensors");
  const auto square = random_layer(9, N, D, D);
  checkpoint_builder builder;
  builder.add<float>("model.layers.1.mlp.gate.weight", {N, D}, square.router);
  builder.add<bf16>("model.layers.1.mlp.of_mine.gate_proj", {N, D, D}, square.gates);
  builder.add<bf16>("model.layers.1.mlp.of_mine.up_proj", {N, D, D}, random_layer(10, N, D, D).gates);
  builder.write(path);
  const auto offered = [](const std::vector<std::string>& arguments) {
    const auto refused = run(arguments);
    CAPTURE(refused.err);
    REQUIRE(refused.status == 2);
    const auto commands = commands_in(refused.err, "if it is so: ");
    REQUIRE(commands.size() == 2);
    for (const auto& command : commands) {
      CHECK_FALSE(contains(command, "--json"));
      CHECK_FALSE(contains(command, "--list"));
    }
    return commands;
  };
  const auto printed = [](const std::string& command, const std::string& more) {
    const auto again = run_printed(command, more);
    CAPTURE(command);
    CAPTURE(again.err);
    REQUIRE(again.status == 0);
    return again.out;
  };
  for (const auto& command :
       offered({path, "--of", "gate+0.5*up", "--max-steps=7", "--no-svd", "--json", folder / "x.json"})) {
    const auto document = json::parse(printed(command, "--json -"));
    CHECK(document["layers"][0]["of"] == "gate+0.5*up");
    CHECK(document["max_steps"] == 7);
    CHECK(document["exact"] == false);
  }
  CHECK_FALSE(std::filesystem::exists(folder / "x.json"));

  const auto target = (folder / "new.safetensors").string();
  for (const auto& command : offered({"recondition", path, target, "--steps", "3", "--of", "up"})) {
    CHECK(contains(command, " --of up "));
    CHECK(contains(printed(command, ""), "3 steps on"));
    std::filesystem::remove(target);
  }

  std::filesystem::copy(path, folder / "b.safetensors");
  for (const auto& command :
       offered({"compare", path, folder / "b.safetensors", "--top-k", "2", "--json", "-"})) {
    const auto document = json::parse(printed(command, "--json -"));
    CHECK(document["b"] == (folder / "b.safetensors").string());
    CHECK(document["top_k"] == 2);
    CHECK(document["coverage"]["complete"] == true);
  }
  // None for two models that have no names in common.
  checkpoint_builder plain;
  io_test::add_layer(plain, "model.layers.1.", square);
  plain.write(folder / "b.safetensors");
  const auto refused = run({"compare", path, folder / "b.safetensors"});
  CHECK(refused.status == 2);
  CHECK_FALSE(contains(refused.err, "if it is so"));
}

}  // namespace test_of
