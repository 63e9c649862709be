// The page of --report calls layers what the model calls them.
#include "program.hpp"

#include <doctest/doctest.h>

namespace test_page {
using namespace tool_test;

namespace {

/// The report on layers with these names; there is no gnuplot.
class page_of {
 public:
  explicit page_of(const std::vector<std::string>& layers) {
    checkpoint_builder builder;
    std::uint64_t seed = 80;
    for (const auto& name : layers) {
      add_layer(builder, name, random_layer(seed++, 3, 4, 5));
    }
    builder.write(folder_ / "model.safetensors");
    const auto result = run({folder_ / "model.safetensors", "--report", folder_ / "page"},
                            "PATH=" + quoted(folder_ / "none"));
    INFO(result.err);
    REQUIRE(result.status == 0);
  }
  [[nodiscard]] std::string html() const { return read_bytes(folder_ / "page/index.html"); }
  [[nodiscard]] std::string data(const std::string& name) const {
    return read_bytes(folder_ / ("page/data/checkpoint-0-" + name));
  }

 private:
  temporary_folder folder_;
};

/// The first fields of the lines of a table, the head left out, each once.
std::vector<std::string> first_fields(const std::string& csv) {
  std::vector<std::string> fields;
  for (std::size_t begin = csv.find('\n') + 1; begin < csv.size(); begin = csv.find('\n', begin) + 1) {
    const auto field = csv.substr(begin, csv.find(',', begin) - begin);
    if (fields.empty() || fields.back() != field) {
      fields.push_back(field);
    }
  }
  return fields;
}

}  // namespace

TEST_CASE("layers have the numbers of the model, in tables, figures and data") {
  const page_of page({"model.layers.0.", "model.layers.2.", "model.layers.3."});
  for (const std::string number : {"0", "2", "3"}) {
    CHECK(contains(page.html(), "<summary>Experts of layer " + number + ": model.layers." + number + "."));
    CHECK(contains(page.html(), "<tr><td>" + number + "<td class=word>model.layers." + number + "."));
  }
  CHECK_FALSE(contains(page.html(), "Experts of layer 1"));
  CHECK(contains(page.data("before.gp"), "set ytics (\"0\" 0, \"2\" 1, \"3\" 2)"));
  CHECK(first_fields(page.data("cosine.csv")) == std::vector<std::string>{"0", "2", "3"});
  CHECK(first_fields(page.data("lambda.csv")) == std::vector<std::string>{"0", "2", "3"});
  CHECK(contains(page.data("convergence.gp"), "title \"layer 2, expert"));
  CHECK(contains(page.html(), "apt-get install gnuplot-nox"));
}

TEST_CASE("numbers that every layer has, or that two share, do not tell layers apart") {
  CHECK(first_fields(page_of({"m7.1.layers.4.", "m7.1.layers.9."}).data("cosine.csv")) ==
        std::vector<std::string>{"4", "9"});
  CHECK(first_fields(page_of({"decoder.block.5.", "encoder.block.5."}).data("cosine.csv")) ==
        std::vector<std::string>{"0", "1"});
  CHECK(first_fields(page_of({"a.", "b.4."}).data("cosine.csv")) == std::vector<std::string>{"0", "1"});
  CHECK(first_fields(page_of({"x.12."}).data("cosine.csv")) == std::vector<std::string>{"12"});
  CHECK(first_fields(page_of({"x.99999999999999999999."}).data("cosine.csv")) ==
        std::vector<std::string>{"0"});
}

}  // namespace test_page
