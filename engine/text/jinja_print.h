// str() and repr() of values, as Python writes them, with provenance: text the template or the
// language makes up (brackets, quotes, digits) is trusted, text of strings keeps what it is.
// Thread rule: that of the Runtime.
#pragma once

#include "engine/text/jinja_runtime.h"
#include "engine/text/jinja_value.h"

namespace morphserve::jinja {

// Both leave the runtime failed when nesting or a limit is exceeded; the builder notices.
void AppendText(Runtime& rt, const Value& value, TextBuilder* out);
void AppendRepr(Runtime& rt, const Value& value, TextBuilder* out, int depth = 0);

// str(value) as a string value; a string is returned as it is (its markup flag too).
[[nodiscard]] bool ToText(Runtime& rt, const Value& value, Value* out);

}  // namespace morphserve::jinja
