// The text that is learned: bytes, cut into a part to train on and a part to test with.
#pragma once

#include "tensor.hpp"

#include <filesystem>

namespace train {

struct batch {
  std::vector<std::uint8_t> inputs;   ///< sequences × length bytes
  std::vector<std::uint8_t> targets;  ///< the byte after each
};

class corpus {
 public:
  /// Reads one text file, or all regular files of a folder in order of name. Every tenth block of 2048 bytes
  /// is held out. Throws std::runtime_error if there is too little.
  explicit corpus(const std::filesystem::path& path);

  [[nodiscard]] std::size_t train_bytes() const { return train_.size(); }
  [[nodiscard]] std::size_t test_bytes() const { return test_.size(); }
  [[nodiscard]] batch sample(random_source& random, index_t sequences, index_t length) const;
  /// The first sequences of the held-out part: always the same.
  [[nodiscard]] batch test(index_t sequences, index_t length) const;

 private:
  std::vector<std::uint8_t> train_;
  std::vector<std::uint8_t> test_;
};

/// The folder of licence texts that Debian and its kin have, or nothing.
[[nodiscard]] std::filesystem::path default_text();

}  // namespace train
