#include "corpus.hpp"

#include <algorithm>
#include <fstream>
#include <iterator>
#include <stdexcept>

namespace train {
namespace {

batch cut(const std::vector<std::uint8_t>& text, const std::vector<std::size_t>& starts, index_t length) {
  batch out;
  for (const std::size_t start : starts) {
    const auto first = text.begin() + static_cast<std::ptrdiff_t>(start);
    out.inputs.insert(out.inputs.end(), first, first + length);
    out.targets.insert(out.targets.end(), first + 1, first + length + 1);
  }
  return out;
}

}  // namespace

corpus::corpus(const std::filesystem::path& path) {
  std::vector<std::filesystem::path> files;
  if (std::filesystem::is_directory(path)) {
    for (const auto& entry : std::filesystem::directory_iterator(path)) {
      if (entry.is_regular_file() && !entry.is_symlink()) files.push_back(entry.path());
    }
    std::sort(files.begin(), files.end());
  } else {
    files.push_back(path);
  }
  constexpr std::size_t block = 2048;
  constexpr std::size_t every = 10;
  std::size_t at = 0;
  for (const auto& file : files) {
    std::ifstream in(file, std::ios::binary);
    if (!in) throw std::runtime_error(file.string() + " cannot be read");
    for (auto c = std::istreambuf_iterator<char>(in); c != std::istreambuf_iterator<char>(); ++c, ++at) {
      (at / block % every == every - 1 ? test_ : train_).push_back(static_cast<std::uint8_t>(*c));
    }
  }
  constexpr std::size_t least = 8 * block;
  if (test_.size() < least) {
    throw std::runtime_error(path.string() + " holds " + std::to_string(at) + " bytes; at least " +
                             std::to_string(every * least) + " are needed");
  }
}

batch corpus::sample(random_source& random, index_t sequences, index_t length) const {
  std::vector<std::size_t> starts;
  starts.reserve(static_cast<std::size_t>(sequences));
  for (index_t s = 0; s < sequences; ++s) {
    starts.push_back(static_cast<std::size_t>(random.below(static_cast<index_t>(train_.size()) - length)));
  }
  return cut(train_, starts, length);
}

batch corpus::test(index_t sequences, index_t length) const {
  std::vector<std::size_t> starts;
  starts.reserve(static_cast<std::size_t>(sequences));
  const auto most = (static_cast<index_t>(test_.size()) - 1) / length;
  for (index_t s = 0; s < std::min(sequences, most); ++s)
    starts.push_back(static_cast<std::size_t>(s * length));
  return cut(test_, starts, length);
}

std::filesystem::path default_text() {
  const std::filesystem::path folder = "/usr/share/common-licenses";
  std::error_code ignored;
  return std::filesystem::is_directory(folder, ignored) ? folder : std::filesystem::path{};
}

}  // namespace train
