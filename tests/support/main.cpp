// main() of the tests: doctest's, but a run fails where it would say nothing. That is one that no test case
// fits, and one whose cases are not all in source files: tests that share a program run the cases of their
// own (--source-file=*/test_rows.cpp), and would pass over those of a header.
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include <cstdio>
#include <string_view>

namespace {

unsigned fitting = 0, in_headers = 0;

struct case_counter final : doctest::IReporter {
  explicit case_counter(const doctest::ContextOptions&) {}
  void test_run_end(const doctest::TestRunStats& run) override { fitting = run.numTestCasesPassingFilters; }
  void test_case_start(const doctest::TestCaseData& test) override { look_at(test); }
  void test_case_skipped(const doctest::TestCaseData& test) override { look_at(test); }

  void report_query(const doctest::QueryData&) override {}
  void test_run_start() override {}
  void test_case_reenter(const doctest::TestCaseData&) override {}
  void test_case_end(const doctest::CurrentTestCaseStats&) override {}
  void test_case_exception(const doctest::TestCaseException&) override {}
  void subcase_start(const doctest::SubcaseSignature&) override {}
  void subcase_end() override {}
  void log_assert(const doctest::AssertData&) override {}
  void log_message(const doctest::MessageData&) override {}

 private:
  static void look_at(const doctest::TestCaseData& test) {
    in_headers += std::string_view(test.m_file.c_str()).ends_with(".hpp");
  }
};
REGISTER_LISTENER("case_counter", 1, case_counter);

}  // namespace

int main(int argc, char** argv) {
  doctest::Context context(argc, argv);
  const int result = context.run();
  if (context.shouldExit()) return result;  // it was asked for its help or its list
  if (fitting == 0) std::fputs("No test case fits.\n", stderr);
  if (in_headers != 0)
    std::fprintf(stderr, "%u test cases are in headers, where no test runs them.\n", in_headers);
  return result != 0 || fitting == 0 || in_headers != 0 ? 1 : 0;
}
