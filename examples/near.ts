import type { RewardModuleContext, RewardRollout } from "rlv/reward";

export const parameters = { near: 0.5 };

/** 1 for the right integer, `near` for one that is off by one. */
export default function (
  { completion, fields }: RewardRollout,
  { parameters }: RewardModuleContext<typeof parameters>,
) {
  const last = completion.match(/-?\d+/g)?.at(-1);
  if (last === undefined) return 0;
  const distance = Math.abs(Number(last) - Number(fields.answer));
  return {
    reward: distance === 0 ? 1 : distance === 1 ? parameters.near : 0,
    components: { right: Number(distance === 0) },
  };
}
