"""The parts of the report, one file each: functions of the runs that return HTML, empty where there is nothing to show."""
