"""Words for Meta-World's tasks: what is true when a task is done, as a command.

Each wording says what is to be true in the end, so that a single picture can be judged by it. The last wording of each task is held out:
it never occurs in recorded data.
"""

from __future__ import annotations

WORDINGS: dict[str, tuple[str, ...]] = {
    "assembly-v3": ("put the ring over the peg so that it rests there", "leave the ring around the peg", "bring peg and ring together"),
    "basketball-v3": ("put the ball into the basket", "bring the basketball through the hoop", "score with the basketball"),
    "bin-picking-v3": ("put the block into the other bin", "leave the block lying in the empty bin", "swap the bin that the block is in"),
    "box-close-v3": ("put the lid on the box so that it is closed", "leave the box covered by its lid", "shut the box"),
    "button-press-topdown-v3": ("press the button down", "leave the button pushed in from above", "make the button go all the way down"),
    "button-press-topdown-wall-v3": (
        "press the button behind the wall down",
        "leave the button beyond the wall pushed in from above",
        "reach over the wall and make the button go all the way down",
    ),
    "button-press-v3": ("press the button in", "leave the button on the box pushed in", "make the button go all the way in"),
    "button-press-wall-v3": (
        "press the button behind the wall in",
        "leave the button beyond the wall pushed in",
        "reach past the wall and make the button go all the way in",
    ),
    "coffee-button-v3": (
        "press the button of the coffee machine",
        "leave the coffee machine's button pushed in",
        "start the coffee machine",
    ),
    "coffee-pull-v3": (
        "pull the mug away from the coffee machine to the marked place",
        "leave the mug standing at the mark, away from the coffee machine",
        "fetch the mug from the coffee machine",
    ),
    "coffee-push-v3": (
        "push the mug under the coffee machine",
        "leave the mug standing under the coffee machine's spout",
        "get the mug ready for coffee",
    ),
    "dial-turn-v3": ("turn the dial by half a turn", "leave the dial turned around", "rotate the knob"),
    "disassemble-v3": ("take the ring off the peg", "leave the ring off the peg", "separate peg and ring"),
    "door-close-v3": ("close the door of the safe", "leave the safe's door shut", "make sure that the safe is closed"),
    "door-lock-v3": ("lock the door by turning the lock", "leave the lock of the door turned down", "bolt the door"),
    "door-open-v3": ("open the door of the safe", "leave the safe's door wide open", "swing the safe open"),
    "door-unlock-v3": ("unlock the door by turning the lock", "leave the lock of the door turned to open", "unbolt the door"),
    "drawer-close-v3": ("close the drawer", "push the drawer all the way in", "leave no gap at the drawer"),
    "drawer-open-v3": ("pull the drawer open", "open the drawer", "leave the drawer wide open", "make the inside of the drawer accessible"),
    "faucet-close-v3": ("turn the faucet to the closed side", "leave the faucet closed", "shut the tap"),
    "faucet-open-v3": ("turn the faucet to the open side", "leave the faucet open", "run the tap"),
    "hammer-v3": (
        "drive the nail into the block with the hammer",
        "leave the nail hammered in",
        "use the hammer so that no nail sticks out",
    ),
    "hand-insert-v3": ("put the gripper into the hole", "leave the gripper down in the hole", "lower the hand below the table's top"),
    "handle-press-side-v3": (
        "press the handle down from the side",
        "leave the handle at the side pushed down",
        "make the side lever go down",
    ),
    "handle-press-v3": ("press the handle down", "leave the handle pushed down", "make the lever go down"),
    "handle-pull-side-v3": ("pull the handle up from the side", "leave the handle at the side pulled up", "make the side lever go up"),
    "handle-pull-v3": ("pull the handle up", "leave the handle pulled up", "make the lever go up"),
    "lever-pull-v3": ("pull the lever up", "leave the lever standing upright", "raise the lever"),
    "peg-insert-side-v3": (
        "put the peg into the hole in the side of the box",
        "leave the peg inside the hole",
        "plug the box with the peg",
    ),
    "peg-unplug-side-v3": ("pull the peg out of the hole", "leave the peg outside of the hole", "unplug the box"),
    "pick-out-of-hole-v3": ("lift the puck out of the hole", "bring the puck from the hole to the mark", "get the puck back"),
    "pick-place-v3": ("pick the puck up and hold it at the mark", "leave the puck at the mark in the air", "raise the puck to its goal"),
    "pick-place-wall-v3": (
        "lift the puck over the wall and hold it at the mark",
        "leave the puck at the mark beyond the wall, in the air",
        "carry the puck across the wall to its goal",
    ),
    "plate-slide-back-side-v3": (
        "slide the plate sideways out of the cabinet",
        "leave the plate beside the cabinet",
        "get the plate out at the side",
    ),
    "plate-slide-back-v3": ("slide the plate out of the cabinet", "leave the plate in front of the cabinet", "get the plate back out"),
    "plate-slide-side-v3": (
        "slide the plate sideways into the cabinet",
        "leave the plate in the cabinet at its side",
        "store the plate sideways",
    ),
    "plate-slide-v3": ("slide the plate into the cabinet", "leave the plate inside the cabinet", "store the plate"),
    "push-back-v3": ("pull the puck back to the mark", "leave the puck at the mark near the robot", "bring the puck home"),
    "push-v3": ("push the puck to the mark", "leave the puck lying at the mark", "bring the puck to its goal"),
    "push-wall-v3": (
        "push the puck around the wall to the mark",
        "leave the puck at the mark behind the wall",
        "bring the puck past the wall",
    ),
    "reach-v3": ("move the gripper to the mark", "leave the gripper at the mark", "touch the goal with the hand"),
    "reach-wall-v3": (
        "move the gripper over the wall to the mark",
        "leave the gripper at the mark beyond the wall",
        "reach across the wall",
    ),
    "shelf-place-v3": ("put the block onto the shelf", "leave the block lying on the shelf", "store the block on the shelf"),
    "soccer-v3": (
        "move the soccer ball into the goal",
        "leave the ball at rest inside the net",
        "push the ball into the net",
        "score with the football",
    ),
    "stick-pull-v3": ("pull the thermos to the mark with the stick", "leave the thermos at the mark", "use the stick to fetch the thermos"),
    "stick-push-v3": (
        "push the thermos to the mark with the stick",
        "leave the thermos standing at the mark",
        "use the stick to move the thermos",
    ),
    "sweep-into-v3": (
        "sweep the small cube into the square hole in the table",
        "leave the cube at rest in the square hole",
        "push the cube until it lies in the hole",
        "fill the gap in the table with the little block",
    ),
    "sweep-v3": ("sweep the cube off the table to the mark", "push the cube over the table's edge", "clear the table of the cube"),
    "window-close-v3": ("slide the window shut", "leave the window closed", "make sure that no air comes through the window"),
    "window-open-v3": ("slide the window open", "leave the window open", "let air in through the window"),
}
"""Task -> its wordings; the last one is held out."""


def recorded_wordings(name: str) -> int:
    """How many wordings of a task may occur in recorded data; the one after them is held out."""
    return len(WORDINGS[name]) - 1
