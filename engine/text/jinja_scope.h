// Resolves the names of a parsed template to slots, by the same static rules as the reference: what
// a name means is decided by where it is stored in the enclosing scopes, before anything runs.
// Fills the Scope, SlotRef and FunctionInfo fields of the tree.
#pragma once

#include "absl/status/status.h"
#include "engine/text/jinja_arena.h"
#include "engine/text/jinja_ast.h"

namespace morphserve::jinja {

// INVALID_ARGUMENT for what only this pass can see (an assignment to `loop`, too many variables).
absl::Status ResolveScopes(TemplateNode* root, Arena& arena);

}  // namespace morphserve::jinja
