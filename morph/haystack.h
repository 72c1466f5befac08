// The English text that recall questions are hidden in: an original of this project (Apache-2.0),
// morph/data/haystack.txt.
#pragma once

#include <string_view>

namespace morphserve {

std::string_view HaystackText();

}  // namespace morphserve
