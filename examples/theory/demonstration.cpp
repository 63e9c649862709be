#include "demonstration.hpp"

#include "../../tools/figures/gnuplot.hpp"
#include "picture.hpp"

#include <utility>

namespace theory {

demonstration::demonstration(int argc, char** argv, std::string name)
    : name_(std::move(name)), folder_(argc > 1 ? argv[1] : "theory") {
  std::filesystem::create_directories(folder_);
}

void demonstration::csv(const std::string& part, const std::string& header, const table& rows) const {
  figures::write_csv(folder_ / (name_ + "-" + part + ".csv"), header, rows);
}

void demonstration::figure(const std::string& picture, const std::string& parameters,
                           const std::string& values) const {
  draw_picture(folder_, picture, parameters, values);
}

}  // namespace theory
