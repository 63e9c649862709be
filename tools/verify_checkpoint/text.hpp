// Text with parts of it replaced.
#pragma once

#include <string>
#include <string_view>

namespace verify {

/// `text` with every `from` replaced.
[[nodiscard]] inline std::string replaced(std::string text, std::string_view from, std::string_view to) {
  for (auto at = text.find(from); at != text.npos; at = text.find(from, at + to.size())) {
    text.replace(at, from.size(), to);
  }
  return text;
}

}  // namespace verify
