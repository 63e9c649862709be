// What holds on every rank of a group, whoever carries the messages.
#pragma once

#include "any_communicator.hpp"

#include <functional>
#include <string>
#include <vector>

namespace test_support {

struct law {
  std::string name;
  /// What is wrong on this rank; empty where nothing is.
  std::function<std::string(const any_communicator&)> broken;
};

/// All of them; every rank is to take them in the same order.
[[nodiscard]] std::vector<law> distributed_laws();

}  // namespace test_support
