// The Unicode normalisation forms, equal to those of the reference tokenizer library, whose tables
// are older than utf8proc's: code points that it does not know are left alone and separate what is
// around them. Thread rule: pure functions. Source: Unicode Standard Annex 15; normalizer_tables.h
// for the separators.
#pragma once

#include <string>
#include <string_view>

namespace morphserve {

enum class UnicodeForm { kNfc, kNfd, kNfkc, kNfkd };

// True when `form` leaves `text` (well-formed UTF-8) as it is; false when it may change it.
bool IsSurelyNormalized(UnicodeForm form, std::string_view text);

// Appends the form of `text` (well-formed UTF-8) to `out`.
void AppendNormalized(UnicodeForm form, std::string_view text, std::string* out);

}  // namespace morphserve
