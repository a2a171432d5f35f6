// What must be known about the figures: that they are old, or lack something. Pure: values in, sentences out. A sentence stays
// as it is for as long as it is true, for it is read aloud when it changes.

import { at } from "./format.js";

// Sentences with how much they matter: "bad" or "note".
export function notices(seen, lost) {
  const found = [];
  const say = (weight, text) => found.push({ weight, text });
  if (lost) say("bad", `The operator does not answer (${lost.why}). What is shown is of ${at(lost.since)}.`);
  if (!seen) return found;
  if (!seen.synced) say("bad", "This operator has not listed the cluster yet: nothing is known of it so far.");
  else if (seen.listed !== null && seen.time - seen.listed > 2.5 * seen.listing)
    say("bad", `The API server was last listed at ${at(seen.listed)}: conditions and replicas may be old.`);
  if (seen.trouble) say("bad", `This operator makes no progress: ${seen.trouble}.`);
  if (!seen.leads && seen.leader)
    say("note", `This operator stands by; ${seen.leader.split("_")[0]} leads. Statuses are as the leader wrote them, traffic is asked of the gateways directly.`);
  else if (!seen.leads) say("bad", "No operator leads as far as this one knows: nothing is decided, and statuses are not renewed.");
  if (!seen.gatewaysNamed) say("bad", "Nobody has told this operator who the gateways are (--gateway-service): no traffic is known.");
  else if (seen.synced && seen.gateways.length === 0) say("bad", "There is no gateway: no traffic is known.");
  const some = seen.gateways.some((gateway) => gateway.heard);
  for (const gateway of seen.gateways) {
    if (!gateway.heard && gateway.since !== null)
      say("bad", `Gateway ${gateway.name} is not heard since ${at(gateway.since)} (${gateway.trouble}).${some ? " Traffic is told without it, as at least so much." : ""}`);
  }
  if (seen.gateways.length && seen.looked !== null && !fresh(seen))
    say("bad", `No gateway was heard since ${at(seen.looked)}: what the traffic is now is not known.`);
  return found;
}

// One line for when all is well.
export function pulse(seen, lost) {
  if (!seen) return lost ? "No answer" : "Asking the operator …";
  const heard = seen.gateways.filter((gateway) => gateway.heard).length;
  const parts = [`${heard} of ${seen.gateways.length} gateways heard`];
  parts.push(seen.leads ? "this operator leads" : "stand-by");
  if (seen.since !== null) parts.push(`figures since ${at(seen.since)}`);
  parts.push(`updated ${at(seen.time)}`);
  return parts.join(" · ");
}

// Whether a gateway was heard lately: else nothing is known of the traffic now.
export function fresh(seen) {
  return seen.looked !== null && seen.time - seen.looked <= seen.patience;
}

// Whether sums over gateways lack one.
export function partial(seen) {
  return seen.gateways.some((gateway) => !gateway.heard);
}
