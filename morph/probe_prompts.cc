#include "morph/probe_prompts.h"

#include <array>
#include <random>

#include "engine/base/check.h"
#include "morph/haystack.h"

namespace morphserve {
namespace {

constexpr std::array<const char*, kProbePrompts> kTexts = {
    "The lighthouse had stood on the point for a hundred and forty years before anyone thought of "
    "switching it off. Ships no longer needed it: each of them carried a map that knew where it "
    "was to within a few metres. But the people of the village had set their evenings by its turn "
    "for so long that the first dark night kept most of them awake, and in the morning they wrote "
    "to the harbour office to ask for it back.",
    "To make bread at home you need flour, water, salt, yeast and time. Mix five hundred grams of "
    "flour with three hundred and fifty grams of water and let it rest for half an hour. Add ten "
    "grams of salt and a little yeast, fold the dough every thirty minutes, and leave it in a cool "
    "place over night. In the morning shape it, let it rise once more, and bake it in a very hot "
    "oven for forty minutes.",
    "A binary search finds a value in a sorted list by halving the part that is left. It looks at "
    "the middle element: if that is too small, the value can only be in the upper half; if it is "
    "too large, in the lower half. After each comparison half of the candidates are gone, so a "
    "million entries need about twenty steps. The usual mistake is in the bounds, when the loop "
    "ends one element too early or never ends at all.",
    "def merge(left, right):\n    result = []\n    i = j = 0\n    while i < len(left) and j < "
    "len(right):\n        if left[i] <= right[j]:\n            result.append(left[i])\n            "
    "i += 1\n        else:\n            result.append(right[j])\n            j += 1\n    "
    "result.extend(left[i:])\n    result.extend(right[j:])\n    return result\n\n\ndef "
    "merge_sort(values):\n    if len(values) < 2:\n        return values\n",
    "Question: A train leaves the station at nine in the morning and travels at eighty kilometres "
    "an hour. A second train leaves the same station an hour later and travels in the same "
    "direction at one hundred kilometres an hour. When does the second train catch up with the "
    "first? Answer: At ten the first train is eighty kilometres ahead. The second gains twenty "
    "kilometres every hour, so it needs four hours and catches up at two in the afternoon.",
    "Remember these codes. The code of the red door is 4817. The code of the green door is 2093. "
    "The code of the blue door is 7756. The code of the white door is 3140. The code of the black "
    "door is 9268. Now answer from memory. The code of the green door is 2093. The code of the "
    "white door is 3140. The code of the red door is 4817. The code of the black door is 9268. The "
    "code of the blue door is 7756.",
    "Water is unusual in that its solid form floats on its liquid form. As it cools it becomes "
    "denser, like most substances, but only down to four degrees; below that the molecules begin "
    "to arrange themselves into the open structure of ice, which takes more room. A lake therefore "
    "freezes from the top, and the ice keeps the water below from losing its warmth, so that fish "
    "and plants survive the winter.",
    "Dear Ms Novak, thank you for your letter of the third of May. We are sorry that the parcel "
    "reached you late and with one item missing. We have sent the missing item today and returned "
    "the cost of delivery to your account. If anything else should not be in order, please write "
    "to us at the address above or call us on any weekday between nine and five. With kind "
    "regards, the customer service team."};

}  // namespace

std::vector<std::vector<int32_t>> MakeProbePrompts(const Tokenizer* tokenizer, int32_t vocab,
                                                   int32_t count, int32_t tokens) {
  MS_CHECK(1 <= count && count <= kProbePrompts && tokens >= 2 && vocab >= 1);
  std::vector<std::vector<int32_t>> prompts;
  std::mt19937 random(1);
  for (int32_t i = 0; i < count; ++i) {
    std::vector<int32_t> ids;
    if (tokenizer != nullptr) {
      auto encoded = tokenizer->Encode(kTexts[static_cast<size_t>(i)], {});
      if (encoded.ok()) ids = *std::move(encoded);
    }
    // A tokenizer of long pieces may need less; the text then starts over.
    const size_t known = ids.size();
    while (static_cast<int32_t>(ids.size()) < tokens) {
      ids.push_back(known > 0 ? ids[ids.size() - known]
                              : static_cast<int32_t>(random() % static_cast<uint32_t>(vocab)));
    }
    ids.resize(static_cast<size_t>(tokens));
    prompts.push_back(std::move(ids));
  }
  return prompts;
}

std::vector<CalibrationSample> MakeRecallProbes(const Tokenizer* tokenizer,
                                                int32_t context_tokens) {
  std::vector<CalibrationSample> probes;
  if (tokenizer == nullptr) return probes;
  auto data = CalibrationData::Create(tokenizer, HaystackText(), /*seed=*/1);
  const int32_t tokens = std::min(kRecallTokens, context_tokens - 1);
  while (data.ok() && static_cast<int32_t>(probes.size()) < kRecallProbes) {
    auto probe = data->Passkey({.tokens = tokens, .keys = 3, .words = 6});
    if (!probe.ok()) return {};
    probes.push_back(*std::move(probe));
  }
  return probes;
}

}  // namespace morphserve
