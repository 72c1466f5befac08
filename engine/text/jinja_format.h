// Python's two string formatting languages, as far as templates use them: `'%s' % x` and
// `'{}'.format(x)`. A conversion that is not supported fails with its text. Any thread.
#pragma once

#include "engine/text/jinja_args.h"
#include "engine/text/jinja_runtime.h"
#include "engine/text/jinja_value.h"

namespace morphserve::jinja {

[[nodiscard]] bool FormatPercent(Runtime& rt, const Str& format, const Value& argument, Value* out);
[[nodiscard]] bool FormatBraces(Runtime& rt, const Str& format, const Args& args, Value* out);

}  // namespace morphserve::jinja
