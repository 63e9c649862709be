# What a header says of itself, above #pragma once, is what the reference says of the file; "Eq." ends no sentence. Lines stay
# where they are.
1,/^#pragma once/ {
  s|^// |/// |
  s|^#pragma once|/// @file|
}
/^ *\/\/\// s|Eq\. |Eq.\\ |g
