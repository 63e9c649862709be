// compare: exit statuses, refusals and the look of the table.
#include "versions.hpp"

#include <algorithm>
#include <sstream>

namespace test_compare_cli {
using namespace tool_test;

TEST_CASE("--require-cosine: 1 where one is below, or something was not compared") {
  const models m;
  const auto l = random_layer(96, 4, 5, 8);
  m.write(m.a, l);
  m.write(m.b, disturbed(l, 0.02F));
  const auto status = [&](const char* least) {
    return run({"compare", m.a, m.b, "--require-cosine", least}).status;
  };
  CHECK(status("0.9") == 0);
  CHECK(status("0.9999999") == 1);
  CHECK(contains(run({"compare", m.a, m.b, "--require-cosine", "0.9"}).err,
                 "4 of 4 experts have cosines of at least 0.9"));
  auto rows = l;
  rows.router = disturbed(l, 0.3F).router;
  m.write(m.b, rows);
  CHECK(status("0.9999") == 1);
  auto gates = l;
  gates.gates = disturbed(l, 0.3F).gates;
  m.write(m.b, gates);
  CHECK(status("0.9999") == 1);
  m.write(m.b, picked(l, {0, 1, 2}));
  CHECK(status("0.9") == 1);
  check_refused({"compare", m.a, m.b, "--require-cosine", "1.5"}, "between -1 and 1");
}

TEST_CASE("what cannot be compared is one line") {
  const models m;
  const auto l = random_layer(97, 2, 3, 4);
  m.write(m.a, l);
  check_refused({"compare", m.a, m.folder / "missing.safetensors"}, "missing.safetensors");
  check_refused({"compare", m.a}, "B is required");
  m.write(m.b, l, "layers.1.");
  check_refused({"compare", m.a, m.b}, "no layer of A is one of B: A has layers.0.mlp, B has layers.1.mlp");
  checkpoint_builder none;
  none.add<float>("embed", {3, 4}, std::vector<float>(12));
  none.write(m.b);
  check_refused({"compare", m.a, m.b}, "b.safetensors: no MoE layer found");
  check_refused({"compare", m.a, m.a, "--json", m.a}, "never overwritten");
  check_refused({m.a, "compare", m.a, m.a}, "compare comes first");
  check_refused({"--of", "down", "compare", m.a, m.a}, "--of before compare is not heeded");
  check_refused({"--require-angle", "0.01", "compare", m.a, m.a}, "--require-angle before compare");
  CHECK(run({"compare", m.a, m.a, "--json", "-"}).out.starts_with("{"));
  for (const char* word : {"matched by", "\"hidden_dim\"", "\"num_experts\"", "--report DIR|FILE.html"}) {
    CHECK(contains(run({"compare", "--help"}).out, word));
  }
  CHECK(contains(run({"--help"}).out, "\"first_expert\""));
}

TEST_CASE("what neither checkpoint can be read of counts once, and so does what one alone can be") {
  const models m;
  const auto plain = random_layer(101, 4, 5, 9);
  const auto square = random_layer(102, 3, 9, 9);
  const auto write = [&](const std::string& path, const char* more) {
    checkpoint_builder builder;
    add_layer<float>(builder, "layers.0.", plain);
    builder.add<float>("layers.1.mlp.gate.weight", {3, 9}, square.router);
    builder.add<float>(std::string("layers.1.mlp.") + more, {3, 9, 9}, square.gates);
    builder.write(path);
  };
  const auto summary = [&] { return m.compare()["coverage"]["summary"].get<std::string>(); };
  write(m.a, "of_mine.gate");
  write(m.b, "of_mine.gate");
  CHECK(summary() == "1 of 2 layers, 4 of 7 experts compared");
  const auto out = run({"compare", m.a, m.b}).out;
  CHECK(contains(out, "not used in A and B: layers.1.mlp.gate.weight: "));
  CHECK(out.find("not used") == out.rfind("not used"));
  CHECK(contains(out, "  if it is so: verify_checkpoint compare " + m.a + " " + m.b + " --router "));
  CHECK(run({"compare", m.a, m.b, "--require-cosine", "0.5"}).status == 1);
  write(m.b, "of_his.gate");
  CHECK(summary() == "1 of 2 layers, 4 of 7 experts compared");
  CHECK(contains(run({"compare", m.a, m.b}).out, "not used in B: layers.1.mlp.gate.weight: "));
  write(m.b, "experts.gate_proj");
  CHECK(summary() == "1 of 2 layers, 4 of 7 experts compared");
  const auto document = m.compare();
  CHECK(document["unmatched_a"].size() == 1);
}

TEST_CASE("the table has colours where they are wanted, and a line a layer where asked") {
  const models m;
  const auto l = random_layer(98, 2, 3, 4);
  m.write(m.a, l);
  CHECK_FALSE(contains(run({"compare", m.a, m.a}).out, "\033["));
  CHECK(contains(run({"compare", m.a, m.a, "--color", "always"}).out, "\033["));
  const auto lines = [&](const char* flag) {
    const auto out = run({"compare", m.a, m.a, flag}).out;
    return std::count(out.begin(), out.end(), '\n');
  };
  CHECK(lines("--summary") + 2 < lines("--experts"));
}

TEST_CASE("the example of the guide is what the program prints") {
  const temporary_folder folder;
  const auto before = data_file("tiny-vanilla.safetensors");
  const auto after = folder / "stepped.safetensors";
  REQUIRE(run({"recondition", before, after}).status == 0);
  const auto printed = run({"compare", before, after, "--top-k", "2", "--summary"}).out;
  std::istringstream guide(read_bytes(GUIDE));
  int lines = 0;
  for (std::string line; std::getline(guide, line);) {
    const bool is_layer = line.starts_with("model.layers.") && line.ends_with("%");
    if (is_layer || line.starts_with("layer  ") || line.starts_with("flips: ") ||
        line.ends_with(" experts compared")) {
      CHECK_MESSAGE(contains(printed, line), line);
      ++lines;
    }
  }
  CHECK(lines == 5);
}

TEST_CASE("what else the guide shows of the models that come with the project") {
  const temporary_folder folder;
  const auto model = data_file("tiny-mpi.safetensors");
  const auto lines = (folder / "run.jsonl").string();
  const auto after = (folder / "stepped.safetensors").string();
  const auto before = data_file("tiny-vanilla.safetensors");
  REQUIRE(run({"recondition", before, after}).status == 0);
  std::string printed = run({model, "--list"}).out;
  printed += run({model, "--layers", "1", "--sample", "2", "--summary", "--lines", lines}).out;
  const auto quote = [&](const outcome& refused) {
    std::string text = refused.err;
    const auto shorten = [&](const std::string& from, const std::string& to) {
      for (auto at = text.find(from); at != text.npos; at = text.find(from, at + to.size())) {
        text.replace(at, from.size(), to);
      }
    };
    shorten(folder.path().string() + "/", "");
    shorten(EXAMPLE_DATA, "examples/data");
    printed += text;
  };
  quote(run({model, "--layers", "1", "--sample", "2", "--lines", lines, "--resume", "--tolerance", "1e-5"}));
  quote(run({model, "--lines", lines}));
  quote(run({model, "--of", "gate+up"}));
  quote(run({"compare", before, after, "--require-cosine", "0.99"}));
  std::istringstream guide(read_bytes(GUIDE));
  bool is_output = false;  // of a command that stands before it after a $
  int checked = 0;
  for (std::string line; std::getline(guide, line);) {
    line.erase(0, line.find_first_not_of(' '));
    if (line.starts_with("$ ") || line.starts_with("```")) {
      is_output = line.starts_with("$ ") && !line.starts_with("$ g++");  // programs are another test's
    } else if (is_output && !line.empty() && !line.starts_with("examples/data/")) {
      CHECK_MESSAGE(contains(printed, line), line);
      ++checked;
    }
  }
  CHECK(checked == 11);
}

}  // namespace test_compare_cli
