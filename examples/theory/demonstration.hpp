// What a demonstration is: a folder for numbers, scripts and figures, and a main() that says what goes wrong.
#pragma once

#include "steps.hpp"

#include <fmt/format.h>

#include <cstdio>
#include <exception>
#include <filesystem>
#include <string>

namespace theory {

/// The folder of one demonstration.
class demonstration {
 public:
  demonstration(int argc, char** argv, std::string name);

  void csv(const std::string& part, const std::string& header, const table& rows) const;

  /// PICTURE.svg by the script PICTURE.gp beside the programs, see draw_picture.
  void figure(const std::string& picture, const std::string& parameters,
              const std::string& values = "") const;

 private:
  std::string name_;
  std::filesystem::path folder_;
};

/// main() of a demonstration: what goes wrong is one line and exit status 2.
template <class Body>
int run(int argc, char** argv, const char* name, const Body& body) {
  try {
    body(demonstration(argc, argv, name));
    return 0;
  } catch (const std::exception& e) {
    fmt::print(stderr, "theory_{}: {}\n", name, e.what());
    return 2;
  }
}

}  // namespace theory
